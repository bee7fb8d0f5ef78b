"""The files that are sent with a job: code and nothing else."""

import subprocess
from pathlib import Path

import pytest

from cluster import package as package_module
from cluster.errors import ClusterError
from cluster.package import collect

PACKAGES = ("cluster", "pipelines")


def _write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    _write(folder, "cluster/a.py", "pipelines/b.py", "pipelines/__pycache__/b.pyc", "README.md")
    return folder


def test_data_results_environments_and_secrets_stay_here(code: Path) -> None:
    _write(code, ".git/HEAD", ".venv/bin/python", "runs/x/checkpoint", "demo/shards/train/0.tar", "big.tar", ".env")
    _write(code, "recipes/mine.yaml", "pipelines/runs/kept.py")
    package = collect(code, code, PACKAGES)
    assert sorted(package.files) == [
        *("README.md", "cluster/a.py", "pipelines/b.py", "pipelines/runs/kept.py", "recipes/mine.yaml"),
    ]


def test_ignore_files_count_in_every_folder(code: Path) -> None:
    _write(code, "notes/keep.txt", "notes/drop.txt", "scratch/x", "top.log")
    (code / ".gitignore").write_text("*.log\n/scratch/\n")
    (code / "notes" / ".rayignore").write_text("drop.txt\n.rayignore\n")
    names = set(collect(code, code, PACKAGES).files)
    assert "notes/keep.txt" in names
    assert not names & {"notes/drop.txt", "scratch/x", "top.log"}


def test_the_code_is_added_from_another_folder(code: Path, tmp_path: Path) -> None:
    here = tmp_path / "work"
    _write(here, "mine.yaml")
    package = collect(here, code, PACKAGES, {"submitted-other.yaml": code / "README.md"})
    assert sorted(package.files) == ["cluster/a.py", "mine.yaml", "pipelines/b.py", "submitted-other.yaml"]


def test_a_folder_that_would_hide_the_code_is_refused(code: Path, tmp_path: Path) -> None:
    here = tmp_path / "work"
    _write(here, "pipelines/other.py")
    with pytest.raises(ClusterError, match=r"work/pipelines would hide .*checkout/pipelines on the cluster"):
        collect(here, code, PACKAGES)


def test_too_much_is_refused_with_the_largest_parts(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_module, "LARGEST_BYTES", 3 * 2**20)
    (code / "images").mkdir()
    (code / "images" / "a.jpg").write_bytes(bytes(2 * 2**20))
    (code / "weights.pth").write_bytes(bytes(4 * 2**20))
    with pytest.raises(ClusterError, match=r"is 6\.0 MiB, too much .* weights\.pth 4\.0 MiB, images/a\.jpg 2\.0 MiB"):
        collect(code, code, PACKAGES)


def test_the_same_files_make_the_same_bytes(code: Path, tmp_path: Path) -> None:
    collect(code, code, PACKAGES).write(tmp_path / "one.zip")
    for file in code.rglob("*.py"):
        file.touch()
    collect(code, code, PACKAGES).write(tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


SECRETS = (
    *(".env", ".env.local", ".env.production", ".envrc", "prod.env", ".netrc", ".git-credentials", ".npmrc", ".pypirc"),
    *(".pgpass", ".aws/credentials", ".ssh/id_rsa", ".ray/auth_token", ".kube/config", ".docker/config.json"),
    *(".config/gcloud/credentials.db", ".huggingface/token", "id_rsa", "id_ed25519", "deep/in/server.key"),
    *("cert.p12", "cert.pfx", "cert.pem", "credentials.json", "conf/secrets.yaml", "my_service_account_1.json"),
)


def test_secrets_never_go_along_and_are_named(code: Path) -> None:
    _write(code, *SECRETS, "keyframes.py", "environment.yaml", "tokenizer.json")
    package = collect(code, code, PACKAGES)
    assert not {*package.files} & {*SECRETS}
    assert {"keyframes.py", "environment.yaml", "tokenizer.json"} <= {*package.files}
    assert ".env.local, which may hold secrets" in package.left_out
    assert "deep/in/server.key, which may hold secrets" in package.left_out


def test_links_out_of_the_tree_are_not_followed(code: Path, tmp_path: Path) -> None:
    _write(tmp_path / "elsewhere", "secret.txt", "folder/x.py")
    (code / "link.txt").symlink_to(tmp_path / "elsewhere" / "secret.txt")
    (code / "linked").symlink_to(tmp_path / "elsewhere" / "folder")
    (code / "inside.md").symlink_to(code / "README.md")
    package = collect(code, code, PACKAGES)
    assert not {*package.files} & {"link.txt", "linked/x.py"}
    assert "inside.md" in package.files
    assert [line.partition(" is a link")[0] for line in package.left_out] == ["linked", "link.txt"]


def test_ignore_files_of_the_whole_repository_count(code: Path, tmp_path: Path) -> None:
    _write(tmp_path, ".git/HEAD")
    (tmp_path / ".gitignore").write_text("*.log\n/checkout/scratch/\n/other/\n!/checkout/kept.log\n")
    _write(code, "top.log", "kept.log", "scratch/x.py", "other/y.py")
    names = set(collect(code, code, PACKAGES).files)
    assert not names & {"top.log", "scratch/x.py"}
    assert "other/y.py" in names
    # Below a repository of its own, the one above does not count.
    _write(code, ".git/HEAD")
    assert "top.log" in collect(code, code, PACKAGES).files


def test_a_deeper_folder_takes_rules_back_as_for_git(code: Path, tmp_path: Path) -> None:
    _write(tmp_path, ".git/HEAD")
    (tmp_path / ".gitignore").write_text("*.log\n*.csv\nout/\n")
    _write(code, "a.log", "notes/a.log", "notes/b.log", "notes/deep/a.log", "notes/a.csv", "out/kept.log", ".env")
    (code / ".gitignore").write_text("!a.log\n!kept.log\n!.env\n")
    (code / "notes" / ".gitignore").write_text("*.log\n!b.log\n")
    (code / "notes" / "deep" / ".gitignore").write_text("!a.log\n")
    (code / ".rayignore").write_text("notes/deep/\n!a.csv\n")
    names = set(collect(code, code, PACKAGES).files)
    assert {"a.log", "notes/b.log"} <= names
    # An ignored folder is not entered, a .rayignore takes back nothing that git ignores, and secrets stay here.
    assert not names & {"notes/a.log", "notes/deep/a.log", "notes/a.csv", "out/kept.log", ".env"}


def test_ignored_files_are_those_of_git(tmp_path: Path) -> None:
    top = tmp_path / "repository"
    _write(top, "a.txt", "b.txt", "x/a.txt", "x/b.txt", "x/y/a.txt", "x/y/c.log", "z/a.txt", "z/k/a.txt", "w/c.log")
    rules = {
        ".gitignore": "*.txt\n!b.txt\n/z/*\n!/z/k/\n*.log\n",
        "x/.gitignore": "!a.txt\nb.txt\n",
        "x/y/.gitignore": "a.txt\n!c.log\n",
        "z/k/.gitignore": "!*.txt\n",
    }
    for name, text in rules.items():
        (top / name).write_text(text)
    git = ["git", "-C", str(top), "-c", "safe.directory=*", "-c", "core.excludesFile="]
    try:
        subprocess.run([*git, "init", "--quiet"], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    listed = subprocess.check_output([*git, "ls-files", "--others", "--exclude-standard"], text=True).splitlines()
    assert sorted(collect(top, top, ()).files) == sorted(listed)
    assert {"b.txt", "x/a.txt", "x/y/c.log", "z/k/a.txt"} <= set(listed)


def test_large_files_that_stay_here_are_named(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_module, "_LARGE_BYTES", 2**20)
    (code / "data.tar").write_bytes(bytes(2**21))
    assert collect(code, code, PACKAGES).left_out == ("data.tar, 2.0 MiB",)
