"""`make dist` makes a wheel that works away from the repository."""

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.docs.pages import ROOT

PACKAGES = ("cluster", "data_shards", "detectors", "pipelines")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of what git tracks, built without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    # setuptools leaves its work in the folder that it builds.
    for name in _tracked():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("aweigh-*.whl"))


def _tracked() -> list[str]:
    """Files of the packages and of their metadata, whether they are committed yet or not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run([*command, *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [
        name for name in (*listed.splitlines(), "pyproject.toml", "README.md", "LICENSE") if (ROOT / name).is_file()
    ]


def test_the_wheel_holds_every_file_of_the_packages_and_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {name for name in _tracked() if name.startswith(PACKAGES)} <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert {name.partition("/")[0] for name in held if ".dist-info/" not in name} == set(PACKAGES)


def test_the_installed_wheel_has_a_working_command(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, timeout=900)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    where = "import pipelines; print(pipelines.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert found.stdout.startswith(str(target))
    for command, expected in (
        ([sys.executable, "-m", "pipelines", "--help"], "aweigh demo"),
        ([sys.executable, "-m", "pipelines", "recipes"], "centernet_resdcn18_1x"),
        ([str(target / "bin" / "aweigh"), "train", "--fields"], "--schedule.epochs"),
    ):
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_the_pinned_versions_are_within_the_ranges_of_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {name.lower(): number for name, _, number in (line.partition("==") for line in lines) if number}
    direct = {Requirement(line).name for line in (ROOT / "requirements.in").read_text().splitlines() if line[0] != "#"}
    for wanted in map(Requirement, project["dependencies"]):
        assert wanted.name in direct, f"{wanted.name} is missing in requirements.in"
        assert wanted.specifier.contains(pinned[wanted.name.lower()]), wanted
        assert wanted.specifier.contains(version(wanted.name)), wanted
