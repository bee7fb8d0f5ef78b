"""Classes that training runners pickle beside the weights, of which nothing is needed.

A class is in this table if its objects only describe a training: settings, paths, dates, numbers, records of metrics.
Each is read as an inert placeholder: its module is never imported, its constructor and its state are never used.
Objects that hold code (networks, optimizers, functions, `builtins.getattr`, `os.system`, and whatever is not listed)
are refused, so that a file that tries to run something is noticed, and so that weights inside a pickled network are
not overlooked.
"""

_PATHS = frozenset({"Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"})
_CONFIGURATIONS = frozenset({"Config", "ConfigDict"})
_LIGHTNING = frozenset({"AttributeDict"})
_OMEGACONF_NODES = frozenset(
    f"{kind}Node" for kind in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String", "Value")
)

DATA_CLASSES: dict[str, frozenset[str]] = {
    # Python's own values. Constructors of containers are here, too: their content cannot be weights.
    "argparse": frozenset({"Namespace"}),
    "types": frozenset({"SimpleNamespace"}),
    "collections": frozenset({"Counter", "deque"}),
    "datetime": frozenset({"date", "datetime", "time", "timedelta", "timezone"}),
    "decimal": frozenset({"Decimal"}),
    "fractions": frozenset({"Fraction"}),
    "uuid": frozenset({"UUID"}),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "typing": frozenset({"Any"}),
    # `object` and the types are named by objects of protocols 0 and 1 and by typed configurations, as arguments.
    **{
        module: frozenset({"object", "set", "frozenset", "complex", "bytearray", "dict", "list", "tuple"})
        | frozenset({"int", "float", "str", "bool"})
        for module in ("builtins", "__builtin__")
    },
    # mmcv 1 and mmengine (mmdetection 2 and 3): the configuration and the record of metrics.
    "mmcv.utils.config": _CONFIGURATIONS,
    "mmengine.config.config": _CONFIGURATIONS,
    "mmengine.logging.history_buffer": frozenset({"HistoryBuffer"}),
    "mmengine.logging.message_hub": frozenset({"MessageHub"}),
    "addict.addict": frozenset({"Dict"}),
    # detectron2, AdelaiDet, maskrcnn-benchmark and others.
    "yacs.config": frozenset({"CfgNode"}),
    "fvcore.common.config": frozenset({"CfgNode"}),
    "detectron2.config.config": frozenset({"CfgNode"}),
    # Lightning: hyperparameters, and the class of a callback as the key of its state.
    "pytorch_lightning.utilities.parsing": _LIGHTNING,
    "lightning.pytorch.utilities.parsing": _LIGHTNING,
    "lightning.fabric.utilities.data": _LIGHTNING,
    "lightning_fabric.utilities.data": _LIGHTNING,
    **{
        f"{package}.callbacks.{module}": frozenset({name})
        for package in ("pytorch_lightning", "lightning.pytorch")
        for module, name in (("model_checkpoint", "ModelCheckpoint"), ("early_stopping", "EarlyStopping"))
    },
    # Hydra's configurations.
    "omegaconf.dictconfig": frozenset({"DictConfig"}),
    "omegaconf.listconfig": frozenset({"ListConfig"}),
    "omegaconf.base": frozenset({"ContainerMetadata", "Metadata"}),
    "omegaconf.nodes": _OMEGACONF_NODES,
    # Dictionaries with attributes, ultralytics' arguments.
    "easydict": frozenset({"EasyDict"}),
    "munch": frozenset({"Munch"}),
    "box.box": frozenset({"Box"}),
    "ml_collections.config_dict.config_dict": frozenset({"ConfigDict"}),
    "ultralytics.utils": frozenset({"IterableSimpleNamespace"}),
    # torch's own values.
    "torch": frozenset({"Size", "device", "Generator"})
    | frozenset({"strided", "contiguous_format", "channels_last", "preserve_format"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch.torch_version": frozenset({"TorchVersion"}),
}
"""Module to the names of its classes."""
