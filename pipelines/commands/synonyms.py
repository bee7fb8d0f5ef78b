"""Words that people try, and the commands that do what they mean."""

_TRAIN = "`aweigh train RECIPE` trains."
_EVALUATE = "`aweigh evaluate RUN` measures AP."
_EXAMINE = "`aweigh shards examine LOCATION` looks for problems in a data set; `aweigh preflight` checks a cluster."
_COMPARE = "`aweigh ui` compares runs in MLflow."
_SETTINGS = "`aweigh recipe show NAME` prints all settings of a recipe; `aweigh train --fields` explains them."
_LISTS = "`aweigh recipes` lists recipes, `aweigh checkpoints ls RUN` checkpoints, and `aweigh jobs` a cluster's jobs."
_PREDICT = "`aweigh predict RUN IMAGES --output FOLDER` finds objects in new images."
_EXPORT = (
    "`aweigh export RUN --to onnx --output FILE.onnx` writes a file for onnxruntime; `aweigh weights export` writes "
    "weights as their authors' code loads them."
)
_SEARCH = "there is no search over settings yet; `aweigh train` takes every setting as a flag."

SYNONYMS = {
    **dict.fromkeys(("fit", "run", "start", "fine-tune", "finetune"), _TRAIN),
    **dict.fromkeys(("resume", "continue", "restart"), "`aweigh train` with the same --run.name resumes a run."),
    **dict.fromkeys(("val", "validate", "eval", "test"), _EVALUATE),
    **dict.fromkeys(("info", "doctor", "check", "inspect", "lint"), _EXAMINE),
    **dict.fromkeys(("diff", "compare", "plot", "dashboard", "mlflow", "tensorboard"), _COMPARE),
    **dict.fromkeys(("config", "cfg", "settings", "fields", "show"), _SETTINGS),
    **dict.fromkeys(("list", "ls"), _LISTS),
    **dict.fromkeys(("detect", "infer", "inference"), _PREDICT),
    **dict.fromkeys(("onnx", "torchscript", "tensorrt", "openvino", "deploy"), _EXPORT),
    **dict.fromkeys(("sweep", "tune", "search"), _SEARCH),
    **dict.fromkeys(
        ("data", "dataset", "build"), "`aweigh shards build` turns COCO annotations and images into shards."
    ),
    **dict.fromkeys(
        ("convert", "import"),
        "`aweigh shards import-voc` and `import-yolo` convert labels; `aweigh weights import` reads published weights.",
    ),
    **dict.fromkeys(("download", "pull", "fetch"), "`aweigh shards pull` copies shards from S3 into a folder."),
    **dict.fromkeys(("upload", "push"), "`aweigh shards push` copies shards from a folder to S3."),
    **dict.fromkeys(("benchmark", "profile", "speed"), "`aweigh bench` measures speed and memory."),
    **dict.fromkeys(("status", "ps"), "`aweigh jobs` lists what was submitted to a cluster."),
    **dict.fromkeys(("kill", "cancel"), "`aweigh stop RUN` ends a submitted run."),
    "verify": "`aweigh shards verify LOCATION` checks shards, and `aweigh checkpoints verify RUN` checks checkpoints.",
    "version": "`aweigh --version` prints it.",
    "help": "`aweigh --help` lists the commands.",
}
"""By word: the end of a message that starts with `unknown command`."""
