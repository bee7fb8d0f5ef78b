"""Images to predict on: files, folders, patterns, videos, a camera, shards, and prefixes of S3.

Every source that a user names becomes an *origin*, a numbered list of images that this process or another can read.
Names of images are unique, relative and the same in every run, because the names of output files follow from them.
"""

import glob
import hashlib
import os
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from data_shards.building.labels import is_calibration
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import FORMAT, MANIFEST_NAME, sample_key
from data_shards.reading.decode import decode_jpeg, image_extension, other_content
from data_shards.reading.scratch import Image
from data_shards.reading.shards import Shards
from data_shards.reading.split import DataSplit
from data_shards.storage.open import open_store
from data_shards.storage.store import Store
from pipelines.errors import ConfigError
from pipelines.hints import did_you_mean
from pipelines.prediction.videos import VIDEO_SUFFIXES, Camera, VideoFile, frame_name

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png"),
    *(".bmp", ".dib", ".webp", ".tif", ".tiff", ".pbm", ".pgm", ".ppm"),
)
"""Endings of the files that are taken from folders, patterns and prefixes, in lower case."""

_OTHER_PICTURES = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".nef", ".arw", ".raw")
"""Endings of pictures that are not decoded; a folder's are counted, so that none is missed in silence."""

_LARGEST_MANIFEST = 1 << 30


class UnreadableError(ValueError):
    """One image cannot be read or decoded; the message is the reason."""


@dataclass(frozen=True)
class Loaded:
    """A decoded image."""

    image: Image
    """Upright, RGB."""
    name: str
    """Of the file, as annotations and people write it."""
    camera: Any = None
    """The camera's projection matrix, 3 by 4 numbers, if the source knows it."""


class Origin(Protocol):
    """A numbered list of images. It can be pickled, and read from several threads unless it is `in_order`."""

    @property
    def label(self) -> str:
        """Name of a folder that sets the images apart from those of other origins."""

    @property
    def in_order(self) -> bool:
        """True if images should be read one after the other."""

    def __len__(self) -> int:
        """Return the number of images."""

    def name(self, index: int) -> str:
        """Return the relative name of an image, with its ending."""

    def image_id(self, index: int) -> int | None:
        """Return COCO's id of an image; None if it has none."""

    def read(self, index: int) -> Loaded:
        """Read and decode an image.

        Raises:
            UnreadableError: this image cannot be read or decoded.
            DataError: the location does not answer.
        """

    def describe(self) -> str:
        """Say what it is, for people."""

    def digest(self) -> str:
        """Return a text that differs if the images differ; names and sizes count, not every byte."""


@dataclass(frozen=True)
class StoredImages:
    """Image files in a folder, or below a prefix of S3."""

    store: Store
    names: tuple[str, ...]
    label: str
    in_order: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the name, relative to the folder or prefix."""
        return self.names[index]

    def image_id(self, index: int) -> int | None:
        """Return None: files have no ids."""
        return None

    def read(self, index: int) -> Loaded:
        """Read and decode a file."""
        name = self.names[index]
        try:
            data = self.store.read_bytes(name)
        except DataError as error:
            # Expired keys must end the job, or it would list all further images as unreadable.
            if self.store.local_path(name) is None and self.store.exists(name):
                raise
            raise UnreadableError(str(error)) from error
        return Loaded(decoded(data), name)

    def describe(self) -> str:
        """Say how many images are where."""
        return f"{counted(len(self), 'image')} in {self.store.location}"

    def digest(self) -> str:
        """Return the sha256 of the location and all names."""
        return _sha256([self.store.location, *self.names])


class ShardImages:
    """The images of a split's shards.

    An image is named after its COCO id before it is read; `Loaded.name` is the file name of its annotations.
    """

    in_order = False

    def __init__(self, split: DataSplit, label: str) -> None:
        self.split = split
        self.label = label
        self._ends = list(accumulate(shard.samples for shard in split.manifest.shards))
        self._shards: Shards | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.split.manifest.num_samples

    def name(self, index: int) -> str:
        """Return the key of a sample as the name of a file."""
        return f"{sample_key(self.image_id(index))}.jpg"

    def image_id(self, index: int) -> int:
        """Return COCO's id of an image."""
        shard, row = self._locate(index)
        return int(self._open().index(shard).image_ids[row])

    def read(self, index: int) -> Loaded:
        """Read and decode a sample."""
        shard, row = self._locate(index)
        shards = self._open()
        sample = shards.read_json(shard, row)
        camera = sample.get("calib")
        name = plain_name(str(sample.get("file_name") or "")) or self.name(index)
        return Loaded(decoded(shards.read_image(shard, row)), name, camera if is_calibration(camera) else None)

    def describe(self) -> str:
        """Say how many images are in which shards."""
        return f"{counted(len(self), 'image')} in shards {self.split.location}"

    def digest(self) -> str:
        """Return the digest of the manifest, which names the data set by its content."""
        return self.split.manifest.digest

    def _locate(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _open(self) -> Shards:
        with self._lock:
            if self._shards is None:
                self._shards = self.split.shards()
            return self._shards

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "_lock": threading.Lock()})


class VideoFrames:
    """The frames of a video file."""

    in_order = True

    def __init__(self, video: VideoFile) -> None:
        self.video = video
        self.label = video.path.stem

    def __len__(self) -> int:
        return self.video.num_frames

    def name(self, index: int) -> str:
        """Return the name of a frame."""
        return frame_name(self.label, index)

    def image_id(self, index: int) -> int | None:
        """Return None: frames have no ids."""
        return None

    def read(self, index: int) -> Loaded:
        """Decode a frame."""
        try:
            return Loaded(self.video.read(index), self.name(index))
        except ValueError as error:
            raise UnreadableError(str(error)) from error

    def describe(self) -> str:
        """Say how many frames the video has."""
        return f"{counted(len(self), 'frame')} of {self.video.path}, {self.video.rate:g} a second"

    def digest(self) -> str:
        """Return a digest of the path, the size of the file and the number of frames."""
        return _sha256([str(self.video.path), str(self.video.path.stat().st_size), str(len(self))])


class CameraFrames:
    """The frames of a camera: endless, unless their number is set."""

    in_order = True

    def __init__(self, camera: Camera, number: int | None) -> None:
        self.camera = camera
        self.label = f"camera-{camera.index}"
        self.number = number

    def __len__(self) -> int:
        # As many as a job can count; reading ends when the camera does, or with Ctrl-C.
        return _ENDLESS if self.number is None else self.number

    def name(self, index: int) -> str:
        """Return the name of a frame."""
        return frame_name(self.label, index)

    def image_id(self, index: int) -> int | None:
        """Return None: frames have no ids."""
        return None

    def read(self, index: int) -> Loaded:
        """Return the next frame; a camera cannot go back, whatever the index.

        Raises:
            EndOfFramesError: the camera delivers no more.
        """
        return Loaded(self.camera.read(), self.name(index))

    def describe(self) -> str:
        """Say when it ends."""
        return f"camera {self.camera.index}, " + (
            "until Ctrl-C" if self.number is None else counted(self.number, "frame")
        )

    def digest(self) -> str:
        """Return the camera's number."""
        return self.label


_ENDLESS = 1 << 40


@dataclass(frozen=True)
class SourceImage:
    """One image of a job."""

    number: int
    """Place among all images of the job, from 0."""
    name: str
    """Unique and relative, with `/` between folders; output files are named after it."""
    stem: str
    """The name without its ending, unique too."""
    image_id: int
    """COCO's id: the one of its shards, or its place from 1."""
    origin: Origin = field(repr=False)
    index: int
    """Place in the origin."""
    prefix: str = ""
    """Folder of the origin's images; empty if the images have no other origin."""

    def load(self) -> Loaded:
        """Read and decode the image; see `Origin.read`."""
        loaded = self.origin.read(self.index)
        return Loaded(loaded.image, f"{self.prefix}{loaded.name}", loaded.camera) if self.prefix else loaded

    def read(self) -> Image:
        """Return the upright image, RGB; see `Origin.read`."""
        return self.load().image


class Sources(Sequence[SourceImage]):
    """All images of a job, in the order in which their sources were named. It can be pickled."""

    def __init__(self, origins: Sequence[Origin], notes: Sequence[str] = (), limit: int | None = None) -> None:
        self.origins = tuple(origins)
        self.notes = tuple(notes)
        """Notes for people about files that were left out."""
        self._ends = list(accumulate(map(len, self.origins)))
        total = self._ends[-1] if self._ends else 0
        self._length = total if limit is None else min(limit, total)
        self._prefixes = _prefixes(self.origins)
        self._own_ids = _have_own_ids(self.origins)
        self._stems = _ambiguous_stems(self.origins, self._prefixes)

    @property
    def is_endless(self) -> bool:
        """True if only Ctrl-C ends the images."""
        return self._length >= _ENDLESS

    @property
    def has_camera(self) -> bool:
        """True if some images cannot be read a second time."""
        return any(isinstance(origin, CameraFrames) for origin in self.origins)

    @property
    def has_videos(self) -> bool:
        """True if there is a video or a camera."""
        return any(origin.in_order for origin in self.origins)

    @property
    def has_videos_only(self) -> bool:
        """True if every image is a frame."""
        return all(origin.in_order for origin in self.origins)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        place = bisect_right(self._ends, number)
        origin, index = self.origins[place], number - (self._ends[place - 1] if place else 0)
        name = f"{self._prefixes[place]}{origin.name(index)}"
        own_id = origin.image_id(index) if self._own_ids else None
        return SourceImage(
            number=number,
            name=name,
            stem=self._stem(name),
            image_id=number + 1 if own_id is None else own_id,
            origin=origin,
            index=index,
            prefix=self._prefixes[place],
        )

    def places(self) -> Iterator[tuple[int, int, Origin]]:
        """Yield each origin with the numbers of its first image and of the image after its last."""
        first = 0
        for origin, end in zip(self.origins, self._ends, strict=True):
            if first < len(self):
                yield first, min(end, len(self)), origin
            first = end

    def describe(self) -> str:
        """Say which images there are, for people."""
        shown = [origin.describe() for origin in self.origins]
        text = "; ".join(shown[:6]) + (f"; and {len(shown) - 6} more sources" if len(shown) > 6 else "")
        total = self._ends[-1] if self._ends else 0
        return text if len(self) == total else f"{text}; the first {len(self):,} of them"

    def digest(self) -> str:
        """Return a text that differs if the images differ."""
        return _sha256([*(origin.digest() for origin in self.origins), str(len(self))])[:16]

    def close(self) -> None:
        """Close videos and cameras."""
        for origin in self.origins:
            if isinstance(origin, VideoFrames):
                origin.video.close()
            elif isinstance(origin, CameraFrames):
                origin.camera.close()

    def _stem(self, name: str) -> str:
        stem = _without_suffix(name)
        # Two files of one name with different endings would have the same output files.
        return f"{stem}_{PurePosixPath(name).suffix[1:]}" if stem in self._stems else stem


def find_sources(
    words: Sequence[str],
    *,
    limit: int | None = None,
    without: Path | None = None,
    open_split: Callable[[str], DataSplit],
    open_location: Callable[[str], Store] = open_store,
    counting: Callable[[Path, int], None] = lambda path, done: None,
) -> Sources:
    """Find the images that a user names.

    Args:
        words: files, folders, patterns, videos, the number of a camera, shards, and `s3://` prefixes of images or
            shards. A file that is named twice counts once.
        limit: take only the first images, this many.
        without: a folder whose files are left out: the output.
        open_split: opens shards, with the settings of the recipe.
        open_location: opens a prefix of S3, with the settings of the recipe.
        counting: called with a video and the number of frames counted so far.

    Raises:
        ConfigError: a source does not exist, has no images, or cannot be read.
        DataError: S3 does not answer, or shards are damaged.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}; it must be 1 or more.")
    finder = _Finder(open_split, open_location, counting, limit, without)
    for word in words:
        finder.add(word)
    return Sources(finder.origins(), finder.notes(), limit)


def decoded(data: bytes) -> Image:
    """Decode an image file of any kind that OpenCV reads.

    Raises:
        UnreadableError: says what the bytes are, if they are not an image.
    """
    try:
        return decode_jpeg(data)
    except ValueError as error:
        reason = str(error) if image_extension(data) else other_content(data)
        raise UnreadableError(reason) from error


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts `photo-10` after `photo-9`."""
    return [
        (0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in re.split(r"(\d+)", name) if part
    ] + [(-1, 0, name)]


def plain_name(name: str) -> str:
    """Return a name from annotations as a relative path that stays inside its folder."""
    parts = name.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..") and not part.endswith(":"))


class _Finder:
    """Collects the sources of a command line."""

    def __init__(
        self,
        open_split: Callable[[str], DataSplit],
        open_location: Callable[[str], Store],
        counting: Callable[[Path, int], None],
        limit: int | None,
        without: Path | None,
    ) -> None:
        self._without = os.path.realpath(without) if without else None
        self._open_split = open_split
        self._open_location = open_location
        self._counting = counting
        self._limit = limit
        self._files: dict[str, tuple[str, str]] = {}
        """By real path: the name of the file, and the real folder that it is relative to."""
        self._real_folders: dict[str, str] = {}
        self._others: dict[str, Origin] = {}
        """By location: sources that are not local image files."""
        self._place_of_files = -1
        self._camera: CameraFrames | None = None
        self._left_out_videos = self._left_out_pictures = 0

    def add(self, word: str) -> None:
        """Add what a word means."""
        if "://" in word:
            self._add_location(word)
        elif os.path.isdir(path := os.path.expanduser(word)):
            self._add_folder(Path(path))
        elif os.path.exists(path):
            self._add_file(Path(path))
        elif word.isdecimal():
            self._add_camera(int(word))
        elif glob.has_magic(word):
            self._add_pattern(path)
        else:
            raise ConfigError(f"there is no file or folder {word}; {_suggestion(Path(path))}")

    def origins(self) -> list[Origin]:
        """Return all origins, in the order of the words; a camera comes last, because it may not end."""
        origins = list(self._others.values())
        if self._files:
            roots = {root for _, root in self._files.values()}
            common = os.path.commonpath(roots)
            below = {root: os.path.relpath(root, common) for root in roots}
            names = tuple(
                name if below[root] == os.curdir else f"{below[root]}/{name}" for name, root in self._files.values()
            )
            origins.insert(self._place_of_files, StoredImages(open_store(common), names, Path(common).name))
        return [*origins, *([self._camera] if self._camera else [])]

    def notes(self) -> list[str]:
        """Say what was left out of folders."""
        notes = []
        if self._left_out_videos:
            notes.append(
                f"{counted(self._left_out_videos, 'video')} in folders left out; name videos themselves, or by a "
                f"pattern such as 'FOLDER/*.mp4'"
            )
        if self._left_out_pictures:
            notes.append(
                f"{counted(self._left_out_pictures, 'picture')} in folders left out, of kinds that OpenCV does not "
                f"read (such as HEIC); convert them to JPEG or PNG"
            )
        return notes

    def _add_files(self, root: Path, names: Iterable[str]) -> None:
        if self._place_of_files < 0:
            self._place_of_files = len(self._others)
        real_root = os.path.realpath(root)
        for name in names:
            self._files.setdefault(self._real(os.path.join(root, name)), (name, real_root))

    def _real(self, path: str) -> str:
        """Return the real path of a file. That of its folder is looked up once, for there may be a million files."""
        folder, name = os.path.split(path)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        joined = os.path.join(self._real_folders[folder], name)
        return os.path.realpath(joined) if os.path.islink(joined) else joined

    def _add_file(self, path: Path) -> None:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            self._add_video(path)
        elif path.name == MANIFEST_NAME and _is_manifest(path):
            self._add_split(str(path.parent))
        elif not os.access(path, os.R_OK):
            raise ConfigError(f"{path} cannot be read: Permission denied. Change its permissions.")
        else:
            self._add_files(path.parent, [path.name])

    def _add_folder(self, folder: Path) -> None:
        if _is_manifest(folder / MANIFEST_NAME):
            self._add_split(str(folder))
            return
        files: dict[str, list[str]] = {}
        for name in _files_below(folder):
            if not self._is_left_out(os.path.join(folder, name)):
                files.setdefault(os.path.splitext(name)[1].lower(), []).append(name)
        images = [name for suffix in IMAGE_SUFFIXES for name in files.get(suffix, ())]
        videos = [Path(name) for suffix in VIDEO_SUFFIXES for name in files.get(suffix, ())]
        other = [Path(name) for suffix in _OTHER_PICTURES for name in files.get(suffix, ())]
        self._left_out_videos += len(videos)
        self._left_out_pictures += len(other)
        if not images:
            raise ConfigError(f"{folder} has no images; {_instead(folder, videos, other)}")
        images.sort(key=natural_key)
        self._add_files(folder, images)

    def _add_pattern(self, pattern: str) -> None:
        found = [one for one in map(Path, glob.glob(pattern, recursive=True)) if not self._is_left_out(str(one))]
        root = _fixed_part(pattern)
        images = [one for one in found if one.is_file() and one.suffix.lower() in IMAGE_SUFFIXES]
        videos = [one for one in found if one.is_file() and one.suffix.lower() in VIDEO_SUFFIXES]
        folders = [one for one in found if one.is_dir() and "**" not in pattern]
        if not images and not videos and not folders:
            what = f"matches {counted(len(found), 'file')}, but no image or video" if found else "matches no file"
            raise ConfigError(f"{pattern} {what}; {_suggestion(root / '*')}")
        if images:
            self._add_files(root, sorted((one.relative_to(root).as_posix() for one in images), key=natural_key))
        for one in sorted(videos, key=lambda file: natural_key(str(file))):
            self._add_video(one)
        for one in sorted(folders, key=lambda file: natural_key(str(file))):
            self._add_folder(one)

    def _is_left_out(self, path: str) -> bool:
        # macOS leaves copies without content in archives.
        if "__MACOSX" in path.split(os.sep):
            return True
        if self._without is None:
            return False
        real = self._real(path)
        return real == self._without or real.startswith(os.path.join(self._without, ""))

    def _add_video(self, path: Path) -> None:
        key = f"video {os.path.realpath(path)}"
        if key not in self._others:
            video = VideoFile(path, self._limit, lambda done: self._counting(path, done))
            self._others[key] = VideoFrames(video)

    def _add_camera(self, index: int) -> None:
        if self._camera is not None and self._camera.camera.index != index:
            raise ConfigError(
                f"cameras {self._camera.camera.index} and {index} are both named; predict on one at a time."
            )
        camera = Camera(index)
        camera.open()
        self._camera = CameraFrames(camera, self._limit)

    def _add_split(self, location: str) -> None:
        split = self._open_split(location)
        self._others.setdefault(f"shards {split.location}", ShardImages(split, split.manifest.split))

    def _add_location(self, location: str) -> None:
        if not location.startswith("s3://"):
            raise ConfigError(
                f"{location} cannot be read; give a file or folder of this machine, or s3://BUCKET/PREFIX."
            )
        location = location.rstrip("/")
        if location.endswith(f"/{MANIFEST_NAME}"):
            location = location.removesuffix(f"/{MANIFEST_NAME}")
        if PurePosixPath(location).suffix.lower() in VIDEO_SUFFIXES:
            raise ConfigError(f"{location} is a video, which cannot be read from S3; copy it to this machine first.")
        store = self._open_location(location)
        if store.exists(MANIFEST_NAME):
            self._add_split(location)
            return
        names = [name for name in store.list_names() if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
        parent, _, name = location.rpartition("/")
        if not names and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
            store, names = self._open_location(parent), [name]
            if not store.exists(name):
                raise ConfigError(f"there is no object {location}; check its name.")
        if not names:
            splits = sorted({one.rpartition("/")[0] for one in store.list_names() if one.endswith(f"/{MANIFEST_NAME}")})
            hint = f"give its shards, such as {location}/{splits[0]}" if splits else "check the prefix"
            raise ConfigError(f"{location} has no images; {hint}.")
        names.sort(key=natural_key)
        known = self._others.get(f"images {store.location}")
        if isinstance(known, StoredImages):
            names = list(dict.fromkeys([*known.names, *names]))
        self._others[f"images {store.location}"] = StoredImages(store, tuple(names), store.location.rpartition("/")[2])


def _is_manifest(path: Path) -> bool:
    """Return True for a manifest of shards; other tools have files of this name, too."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_MANIFEST:
            return False
        return f'"{FORMAT}"'.encode() in path.read_bytes()
    except OSError:
        return False


def _files_below(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, also through links to folders; hidden ones are left out.

    Raises:
        ConfigError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ConfigError(f"cannot list {error.filename}: {error.strerror}. Change its permissions.") from error

    seen: set[str] = set()
    for where, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        # A link to a folder above would be followed forever.
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(one for one in folders if not one.startswith(".") and one != "__MACOSX")
        # Files that macOS leaves on other disks, ._photo.jpg, are hidden by their names, too.
        below = os.path.relpath(where, folder)
        yield from (one if below == os.curdir else f"{below}/{one}" for one in files if not one.startswith("."))


def _instead(folder: Path, videos: Sequence[Path], other: Sequence[Path]) -> str:
    """Suggest a source for a folder without images."""
    if videos:
        return f"it has {counted(len(videos), 'video')}: give '{folder}/*{videos[0].suffix}'."
    if other:
        return f"it has {counted(len(other), 'picture')} such as {other[0].name}; convert them to JPEG or PNG."
    splits = sorted(one.parent for one in folder.glob(f"*/{MANIFEST_NAME}") if _is_manifest(one))
    if splits:
        return f"give the shards of a split: {' or '.join(map(str, splits[:4]))}."
    return f"files that end in {', '.join(IMAGE_SUFFIXES[:5])} and the like count. Check the path."


def _suggestion(path: Path) -> str:
    """Suggest a path that exists in place of one that does not."""
    parent = path.parent
    if not parent.is_dir():
        missing = next((one for one in reversed(path.parents) if not one.exists()), parent)
        return f"there is no folder {missing} either. Check the path."
    try:
        names = os.listdir(parent)
    except OSError:
        return "check the path."
    where = str(parent / "x")[:-1].replace("{", "{{").replace("}", "}}")
    return did_you_mean(path.name, names, "check the path.", form=f"{where}{{}}")


def _fixed_part(pattern: str) -> Path:
    """Return the folder before the first wildcard of a pattern."""
    fixed = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _prefixes(origins: Sequence[Origin]) -> list[str]:
    """Return the folder of each origin's names; a single origin needs none, and frames have their video's already."""
    alone = sum(not origin.in_order for origin in origins) == 1
    taken: set[str] = set()
    if alone:
        # A folder of extracted frames may have the name of its video.
        stored = [origin for origin in origins if isinstance(origin, StoredImages)]
        taken = {name.partition("/")[0].lower() for origin in stored for name in origin.names}
    prefixes = []
    for origin in origins:
        if alone and not origin.in_order:
            prefixes.append("")
            continue
        wanted = origin.label or "images"
        label, count = wanted, 1
        while label.lower() in taken:
            count += 1
            label = f"{wanted}-{count}"
        taken.add(label.lower())
        if isinstance(origin, VideoFrames | CameraFrames):
            # Frames are in a folder of their own already.
            origin.label = label
        prefixes.append("" if origin.in_order else f"{label}/")
    return prefixes


def _have_own_ids(origins: Sequence[Origin]) -> bool:
    """Return True if COCO's ids of the shards can be used: there are shards only, and no id is in two of them."""
    if not all(isinstance(origin, ShardImages) for origin in origins):
        return False
    if len(origins) == 1:
        return True
    ids = [origin.image_id(index) for origin in origins for index in range(len(origin))]
    return len(set(ids)) == len(ids)


def _ambiguous_stems(origins: Sequence[Origin], prefixes: Sequence[str]) -> frozenset[str]:
    """Return the stems that several names share; frames and samples of shards have unique ones."""
    seen: set[str] = set()
    twice: set[str] = set()
    for origin, prefix in zip(origins, prefixes, strict=True):
        if isinstance(origin, StoredImages):
            for name in origin.names:
                stem = _without_suffix(f"{prefix}{name}")
                (twice if stem in seen else seen).add(stem)
    return frozenset(twice)


def _without_suffix(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if not stem or not suffix or "/" in suffix or stem.endswith("/") or "//" in name or "./" in name:
        return str(PurePosixPath(name).with_suffix(""))  # ten times slower
    return stem


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
