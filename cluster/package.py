"""The working directory as one small zip: the files that a job needs on a cluster, and no more.

The same files make the same bytes, so that Ray uploads a package only once. `.gitignore` and `.rayignore` count in
every folder, those of the repository above the working directory too. Links that lead out of the tree are not followed.
"""

import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from cluster.errors import ClusterError

# Data, results, environments, caches and secrets are never sent. In the notation of .gitignore: a leading slash means
# the top folder.
EXCLUDED = (
    *(
        ".git/",
        ".venv*/",
        "venv/",
        "node_modules/",
        "__pycache__/",
        "*.pyc",
        "*.egg-info/",
        ".*_cache/",
        ".hypothesis/",
    ),
    *("/runs/", "/demo/", "/shards/", "/mlruns/", "mlflow.db", "mlartifacts/", "*.tar", "*.tar.*", "*.tgz", "*.zip"),
    # Secrets: variables, keys, and the files in which common tools keep credentials.
    *(".env*", "*.env", ".netrc", "_netrc", ".pgpass", ".my.cnf", ".npmrc", ".yarnrc*", ".pypirc", ".git-credentials"),
    *(".aws/", ".ssh/", ".ray/", ".kube/", ".docker/", ".config/", ".huggingface/", ".azure/", ".gnupg/", ".kaggle/"),
    *(".databrickscfg", ".mlflow/", ".boto", ".s3cfg", ".rclone.conf", "rclone.conf", ".htpasswd", ".vault-token"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.ppk", "*.asc", "*.gpg", "id_rsa*", "id_dsa*"),
    *("id_ecdsa*", "id_ed25519*", "credentials", "credentials.json", "client_secret*.json", "*service_account*.json"),
    *("*service-account*.json", "kubeconfig", "secrets.y*ml", "secrets.json", "secrets.toml", "*.tfstate*", "*.tfvars"),
)
_SECRETS = GitIgnoreSpec.from_lines(EXCLUDED[EXCLUDED.index(".env*") :])
_EXCLUDED = GitIgnoreSpec.from_lines(EXCLUDED)
# A file of this size that stays here is named.
_LARGE_BYTES = 10 * 2**20
LARGEST_BYTES = 100 * 2**20
_IGNORE_FILES = (".gitignore", ".rayignore")
Rules = list[tuple[Path, GitIgnoreSpec]]
"""Rules with the folder that they are relative to, from the top folder down."""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can contain


@dataclass(frozen=True)
class Package:
    """The files of a package, by their name in it."""

    files: Mapping[str, Path]
    sizes: Mapping[str, int]
    """Bytes of each, uncompressed."""
    left_out: tuple[str, ...] = ()
    """One line about each file that someone may miss: links out of the tree, secrets, and large files."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def biggest(self) -> list[tuple[str, int]]:
        """Find the five largest folders and files of the first two levels."""
        found = Counter[str]()
        for name, size in self.sizes.items():
            found["/".join(name.split("/")[:2])] += size
        return found.most_common(5)

    def write(self, path: Path) -> None:
        """Write the zip; its bytes depend only on the files' names, contents and mode."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, file in sorted(self.files.items()):
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if os.access(file, os.X_OK) else 0o644) << 16
                archive.writestr(entry, file.read_bytes())


def collect(folder: Path, code: Path, packages: tuple[str, ...], extra: Mapping[str, Path] | None = None) -> Package:
    """Choose the files of a package.

    Args:
        folder: the working directory; all its files are sent unless excluded or ignored.
        code: folder of the import packages that the job runs; they are added unless it is `folder` itself.
        packages: names of these import packages.
        extra: more files by their name in the package, even if they are ignored or outside of `folder`.

    Raises:
        ClusterError: the files are too large, with the largest of them; or a folder of the working directory has the
            name of one of `packages` but is a different one.
    """
    left_out: list[str] = []
    files = dict(_walk(folder, left_out))
    if folder.resolve() != code.resolve():
        for name in packages:
            if (folder / name).exists():
                # The working directory comes first on the job's import path.
                raise ClusterError(
                    f"{folder / name} would hide {code / name} on the cluster; submit from another folder, or from "
                    f"{code}."
                )
            files |= {f"{name}/{inner}": path for inner, path in _walk(code / name, [])}
    files |= dict(extra or {})
    sizes = {name: path.stat().st_size for name, path in files.items()}
    package = Package(files, sizes, tuple(left_out))
    if package.size_bytes > LARGEST_BYTES:
        shown = ", ".join(f"{name} {megabytes(size)}" for name, size in package.biggest())
        raise ClusterError(
            f"{folder} is {megabytes(package.size_bytes)}, too much to send with a job (at most "
            f"{megabytes(LARGEST_BYTES)}); the largest parts are {shown}. List what is not code in .rayignore, or "
            f"submit from a smaller folder."
        )
    return package


def megabytes(size: int) -> str:
    """Format a size for people."""
    return f"{size / 2**20:,.1f} MiB"


def _walk(top: Path, left_out: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield name and path of every file below `top` that no rule excludes; add a line about those it leaves out."""
    inside = top.resolve()
    rules: dict[Path, dict[str, Rules]] = {top.parent: {name: _rules_above(top, name) for name in _IGNORE_FILES}}

    for folder, folders, names in os.walk(top):
        here = Path(folder)
        # A rule counts in its own folder and all below it.
        active = rules[here] = {
            name: [*inherited, *([(here, _read_rules(here / name))] if name in names else [])]
            for name, inherited in rules[here.parent].items()
        }

        def is_excluded(path: Path, active: dict[str, Rules] = active, slash: str = "") -> bool:
            # Only a .gitignore can take back what a .gitignore says; nothing takes back our own rules.
            return _EXCLUDED.match_file(_below(path, top) + slash) or any(
                _is_ignored(path, rules, slash) for rules in active.values()
            )

        def leads_out(path: Path) -> bool:
            if not path.is_symlink() or path.resolve().is_relative_to(inside):
                return False
            left_out.append(f"{path.relative_to(top)} is a link to {path.resolve()}, outside of {top}")
            return True

        kept = [name for name in sorted(folders) if not is_excluded(here / name, slash="/")]
        for name in kept:
            leads_out(here / name)  # a folder that is a link is never entered, but someone may miss it
        folders[:] = kept
        for name in sorted(names):
            path = here / name
            if not path.is_file():
                continue
            shown = path.relative_to(top).as_posix()
            if is_excluded(path):
                if (size := path.stat().st_size) >= _LARGE_BYTES:
                    left_out.append(f"{shown}, {megabytes(size)}")
                elif path.name not in _IGNORE_FILES and _SECRETS.match_file(shown):
                    left_out.append(f"{shown}, which may hold secrets")
            elif not leads_out(path):
                yield shown, path


def _is_ignored(path: Path, rules: Rules, slash: str) -> bool:
    """Return the decision of the deepest folder whose rules name the path, as git does: "!" may take a rule back."""
    decisions = (spec.check_file(_below(path, base) + slash).include for base, spec in reversed(rules))
    return next((decision for decision in decisions if decision is not None), False)


def _below(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix()


def _rules_above(top: Path, name: str) -> Rules:
    """Read the ignore files of the repository's folders above `top`, as git does; none outside of a repository.

    Args:
        top: a folder.
        name: of the ignore files.
    """
    top = top.absolute()
    above: list[Path] = []
    for folder in top.parents if not (top / ".git").exists() else ():
        above.insert(0, folder)
        if (folder / ".git").exists():
            return [(folder, _read_rules(folder / name)) for folder in above if (folder / name).is_file()]
    return []


def _read_rules(path: Path) -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines(path.read_text(errors="replace").splitlines())
