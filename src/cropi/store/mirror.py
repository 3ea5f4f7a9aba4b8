"""A run kept in an object store: a directory on this machine, and its finished outputs there.

The run works in a local directory as any other does. Every output that its ledger lists is
uploaded, and the ledger last, so that what the store's ledger lists is there. A run that continues,
here or on another machine, first takes over the store's ledger: the store has the run, the
directory is a copy. Weights of policies that are not needed are fetched when they are.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cropi.errors import InputError
from cropi.schema import fingerprint
from cropi.store.cached import ASIDE, read_record
from cropi.store.files import OLD, PART, atomic_write, content_hash, remove, write_json
from cropi.store.lease import Lease
from cropi.store.ledger import LEDGER, REPORTED, Entry, Ledger, listed_files, parse_ledger
from cropi.store.lock import LOCK, exclusive_lock
from cropi.store.object_store import ObjectStore, StoredFile
from cropi.store.remote import at_once, cache_directory
from cropi.text import remote_url

IDENTITY = ".mirror"
"""In the directory: the name of this copy, and whether the store has had anything of it."""
_open: dict[Path, Mirror] = {}
"""The mirrors of this process, by directory."""


def working_directory(out: str) -> Path:
    """Where the runs of `out` are on this machine: there, or in the cache if it is a URL."""
    url = remote_url(out)
    if url is None:
        return Path(out).expanduser()
    return cache_directory("runs") / fingerprint(url.rstrip("/"))


@contextmanager
def exclusive_run(root: Path, url: str | None) -> Iterator[None]:
    """Keep other processes from a run's directory and from its URL, and the two alike.

    May be nested in a process. Raises InputError if another process is at work there, or the store
    cannot be read or written.
    """
    with exclusive_lock(root):
        if url is None or root in _open:
            yield
            return
        store = ObjectStore(url)
        with Lease(store, _identity(root)) as lease:
            mirror = Mirror(root, store, lease)
            mirror.pull()
            _open[root] = mirror
            try:
                yield
                mirror.finish()
            except BaseException:
                with suppress(InputError):  # the first error is the one to report
                    mirror.finish()
                raise
            finally:
                del _open[root]


def mirror_of(root: Path) -> Mirror | None:
    """The mirror of a directory; None of one that is on this machine alone."""
    return _open.get(root)


def fetch_missing(folder: Path) -> None:
    """Fetch the files in a folder of a run that the store alone has, if it is such a run."""
    for root, mirror in _open.items():
        if folder.is_relative_to(root):
            mirror.fetch(folder.relative_to(root).as_posix())


class Mirror:
    """The store's copy of the directory `root`, for the holder of its lease."""

    def __init__(self, root: Path, store: ObjectStore, lease: Lease) -> None:
        self.root, self.store, self.lease = root, store, lease
        self._there: dict[str, str] = {}
        self._beside: dict[str, tuple[int, int]] = {}
        self._failure: InputError | None = None

    def holds(self, name: str, content: str) -> bool:
        """Whether the store has a listed file with this content."""
        return self._there.get(name) == content

    def pull(self) -> None:
        """Make the directory what the store has, and keep what is finished here alone.

        A file of the store that is not what its ledger lists was being replaced when a process was
        killed: its output is not listed any more, and is made again.
        """
        stored = {self._name(file): file for file in self.store.under()}
        content = self.store.read(self.store.at(LEDGER))
        if content is None:
            self._clear_if_removed()
            return
        entries, _ = parse_ledger(content.decode(errors="replace"))
        listed = listed_files(entries.values())
        self._there = {name: each for name, each in listed.items() if name in stored}
        wanted = [name for name in listed if not _is_fetched_later(name, entries)]
        at_once(self._fetch, [name for name in wanted if name in self._there])
        local = Ledger(self.root)
        local.take_over({key: e for key, e in entries.items() if self._is_whole(e)}, entries)
        for name, file in stored.items():
            if "/" not in name and name not in listed and name != LEDGER:
                self._adopt_if_newer(name, file)
        self._write_identity()

    def fetch(self, folder: str) -> None:
        """Fetch the listed files below a folder that are not here."""
        names = [name for name in self._there if name.startswith(f"{folder}/")]
        at_once(self._fetch, [name for name in names if not (self.root / name).exists()])

    def push(self, listed: Mapping[str, str]) -> None:
        """Upload what the ledger lists and the store lacks, then the ledger, then delete the rest.

        A store that cannot be written is reported and tried again with the next output: the run
        continues, and its directory has everything.
        """
        try:
            self._push(listed)
        except InputError as error:
            self.lease.require_held()
            if self._failure is None:
                warnings.warn(f"{error}; the run continues in {self.root}", stacklevel=2)
            self._failure = error
        else:
            self._failure = None

    def finish(self) -> None:
        """Upload what lies beside the outputs. Raises InputError if anything could not be."""
        try:
            self._push(listed_files(Ledger(self.root).entries.values()))
        except InputError as error:
            raise InputError(
                f"{error}; {self.root} has the whole run: give the command again to upload it"
            ) from error

    def _push(self, listed: Mapping[str, str]) -> None:
        new = [name for name, content in listed.items() if not self.holds(name, content)]
        at_once(self._upload, [name for name in new if (self.root / name).is_file()])
        self._upload_unlisted(listed)
        self.lease.require_held()
        if (self.root / LEDGER).exists():
            self._upload(LEDGER)
        gone = [name for name in self._there if name not in listed]
        self.store.remove([self.store.at(name) for name in gone])
        self._there = dict(listed)
        self._write_identity()

    def _upload_unlisted(self, listed: Collection[str]) -> None:
        """Upload files of the directory that belong to no output, such as timings."""
        for file in sorted(self.root.iterdir()):
            if file.name in listed or file.name == LEDGER or not _is_kept(file):
                continue
            state = (file.stat().st_size, file.stat().st_mtime_ns)
            if self._beside.get(file.name) != state:
                self._upload(file.name)
                self._beside[file.name] = state

    def _adopt_if_newer(self, name: str, file: StoredFile) -> None:
        """Take the store's copy of an unlisted file, unless the one here continues it."""
        target, content = self.root / name, self.store.read(file.path) or b""
        if not (target.is_file() and target.read_bytes().startswith(content)):
            with atomic_write(target) as part:
                part.write_bytes(content)

    def _is_whole(self, entry: Entry) -> bool:
        """Whether all files of an output are here, or in the store alone, as they were listed."""
        return all(
            content_hash(self.root / name) == content
            if (self.root / name).is_file()
            else self.holds(name, content)
            for name, content in entry.files.items()
        )

    def _fetch(self, name: str) -> None:
        """Fetch a listed file, unless it is here; one with another content counts as not there."""
        target, content = self.root / name, self._there[name]
        if target.is_file() and content_hash(target) == content:
            return
        with atomic_write(target) as part:
            self.store.download(StoredFile(self.store.at(name), -1, ""), part)
        if content_hash(target) != content:
            del self._there[name]

    def _upload(self, name: str) -> None:
        self.store.upload(self.root / name, self.store.at(name))

    def _clear_if_removed(self) -> None:
        """Empty the directory if its run was removed from the store."""
        if not read_record(self.root / IDENTITY).get("mirrored"):
            return
        for file in self.root.iterdir():
            if file.name not in (LOCK, IDENTITY):
                remove(file)

    def _write_identity(self) -> None:
        record = read_record(self.root / IDENTITY)
        if not record.get("mirrored"):
            write_json(self.root / IDENTITY, {**record, "mirrored": True})

    def _name(self, file: StoredFile) -> str:
        return file.path.lstrip("/")[len(self.store.at("").lstrip("/")) :].lstrip("/")


def _identity(root: Path) -> str:
    """The name of this copy, which the directory keeps."""
    record = read_record(root / IDENTITY)
    if not isinstance(record.get("copy"), str):
        record = {"copy": uuid.uuid4().hex}
        write_json(root / IDENTITY, record)
    return str(record["copy"])


def _is_kept(file: Path) -> bool:
    in_between = file.suffix in (PART, OLD, ASIDE, LOCK)
    return file.is_file() and not (in_between or file.name.startswith("."))


def _is_fetched_later(name: str, entries: Collection[str]) -> bool:
    """Whether a file holds weights of a stage whose next stage is already trained."""
    folder, _, inside = name.partition("/policy/")
    if not inside or Path(inside).suffix in REPORTED:
        return False
    stages, _, index = folder.rpartition("/")
    return index.isdecimal() and f"{stages}/{int(index) + 1}/policy" in entries
