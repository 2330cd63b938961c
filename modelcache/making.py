"""The part of a Cache that derives: inputs are got, the key is made, and what is not here is built.

No algorithm of its own: what a key is made of is `derivation`, how a product comes about `deriving`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from . import layout, platforms, reference, stamps
from .config import is_seconds
from .derivation import Derivation, InputGoneError, Part, check_digest
from .digest import Digest
from .errors import EntryNotFoundError, NotFoundError, UsageError
from .getting import Getter
from .hit import stands as object_stands
from .keeper import Keeper
from .leasing import TRIES, vanishing
from .policy import NONE
from .question import VERIFY, Ask, RefLike, question
from .records import Entry

if TYPE_CHECKING:
    from .deriving import Builder
    from .flights import Flights
    from .retry import Deadline
    from .workspace import Workspace

Build = Callable[["Workspace"], object]
_VERIFY = (*VERIFY, "rebuild")


@dataclass(frozen=True, slots=True)
class Input:
    """An input of a derivation that counts as something else than its own digest.

    Attributes:
        ref: What it is, as for `Cache.get`.
        digest: What it counts as in the key, ``sha256:<hex>`` or ``tree:<hex>``: contents that make no difference to
            the build have the same one. None: the content's own.
    """

    ref: RefLike
    digest: str | None = None


InputLike = RefLike | Entry | Input


class Maker(Keeper):
    """The part of a `Cache` that derives."""

    _getter: Getter
    _builds: Flights[Entry] | None = None

    def derive(
        self,
        build: Build,
        *,
        recipe: str,
        version: str,
        inputs: Iterable[InputLike] | Mapping[str, InputLike],
        params: Mapping[str, Any] | None = None,
        platform: Mapping[str, Any] | None = None,
        name: str | None = None,
        check: Callable[[str], object] | None = None,
        isolate: bool = False,
        timeout: float | None = None,
        force: bool = False,
        verify: str | None = None,
    ) -> str:
        """Return the path of what *build* makes of *inputs*, built if it is not here: once per machine.

        ``cache.derive(quantise, recipe="int8", version="1", inputs=[ref], params={"bits": 8})``. All that the product
        depends on is its key; whatever differs is a miss. The product appears whole, or not at all.

        Args:
            build: Called with a `Workspace`, the path of a private, empty directory. What it leaves there is the
                product: one file, or one directory, under its own name; or it returns the path of it.
            recipe: What the derivation is called, such as ``onnx-optimize``.
            version: Of the recipe: a new one where *build* does something else than before.
            inputs: Refs, paths or entries, which are got first; by name, or in order: then called ``"0"``, ``"1"`` …
                A file of this machine is looked at each time, and is another input when it has changed.
            params: What else decides what *build* makes; JSON values.
            platform: The machine and software that the product depends on; JSON values. Default: operating system and
                processor; ``{}`` for what is the same everywhere.
            name: What several things that *build* leaves are called together; in any case the product's own name.
            check: Called with the path of the product before anybody can see it; what it raises refuses it.
            isolate: Run *build* and *check* in processes of their own, which may crash. Both must be importable.
            timeout: Longest time for each of the two, in seconds. Without *isolate* it ends what calls
                ``workspace.check()``.
            force: Build also what is here, or has failed too often.
            verify: ``stat`` compares sizes and mtimes of the product with the record; ``full`` reads and hashes it;
                ``rebuild`` builds it again and compares, as ``MODELCACHE_VERIFY_DERIVED=1`` does each time.

        Raises:
            UsageError: An argument makes no sense; nothing was built.
            DerivationError: It could not be built; nothing of it is cached. The leaves say why.
            NoSpaceError, CapacityError, StorageError
            ModelCacheError: An input could not be had, as for `get`.
        """
        labelled, gone = _labelled(inputs), None
        for _ in range(TRIES):
            try:
                job = self._job(
                    build, recipe, version, labelled, params, platform, name, check, isolate, timeout, force, verify
                )  # fmt: skip
                return job.path if isinstance(job, Entry) else self._flights().run(*job).path
            except (InputGoneError, NotFoundError) as error:
                gone = _to_be_got_again(error, gone)
        raise vanishing(str(gone)) from gone

    async def aderive(self, build: Build, **options: Any) -> str:
        """Do what `derive` does without blocking the event loop; a cancelled task gives up its interest."""
        from asyncio import to_thread
        from inspect import signature

        given = signature(self.derive).bind(build, **options)
        given.apply_defaults()
        asked = {**given.arguments, "inputs": _labelled(given.arguments["inputs"])}
        gone = None
        for _ in range(TRIES):
            try:
                job = await to_thread(self._job, **asked)
                if isinstance(job, Entry):
                    return job.path
                return (await self._flights().arun(*job, self._getter.threads())).path
            except (InputGoneError, NotFoundError) as error:
                gone = _to_be_got_again(error, gone)
        raise vanishing(str(gone)) from gone

    @property
    def is_plain(self) -> bool:
        """Whether records that stand are an answer: no policy, no source asked each time, no count."""
        self._check_open()
        limits = self._limits
        return not (limits.policies or limits.refresh or limits.verify_derived or self._recorder)

    def explain(self, ref: RefLike) -> Derivation:
        """Return all that a derived artefact depends on, and how it was made.

        Args:
            ref: ``derived:<recipe>/<action>``, or the path that `derive` returned, or one in it.

        Raises:
            EntryNotFoundError: It is not here, or was not derived.
        """
        text = os.fspath(ref)
        objects = f"{self.root}/{layout.OBJECTS}/"
        if text.startswith(objects):
            obj = text[len(objects) :].partition("/")[0]
            entries = [one for one in self._entries.derived() if layout.object_name(one.digest) == obj]
        else:
            entries = [one for one in [self._entries.read(reference.parse(ref).key)] if one is not None]
        found = max(
            (one for entry in entries if (one := entry.derived) is not None), key=lambda one: one.created, default=None
        )
        if found is None:
            raise EntryNotFoundError(ref=text, root=self.root)
        return found

    # -- inside ----------------------------------------------------------------------------------------------------

    def _job(
        self,
        build: Build,
        recipe: str,
        version: str,
        inputs: Sequence[tuple[str, InputLike]],
        params: Mapping[str, Any] | None,
        platform: Mapping[str, Any] | None,
        name: str | None,
        check: Callable[[str], object] | None,
        isolate: bool,
        timeout: float | None,
        force: bool,
        verify: str | None,
    ) -> Entry | _Job:
        """Return what is here of what `derive` was asked for, else what brings it."""
        self._check_open()
        verify = verify or ("rebuild" if self._limits.verify_derived else "stat")
        _check(build, check, name, timeout, verify)
        Derivation(recipe, version, (), params or {}, platform or {})  # A senseless one is told before an input is got.
        parts = [self._part(label, one) for label, one in inputs]
        what = Derivation(
            recipe,
            version,
            tuple(part for part, _ in parts),
            params or {},
            platforms.system() if platform is None else platform,
        )
        found, known = (None, self._entries.read(what.ref)) if force else self._found(what, verify)
        if found is not None and verify != "rebuild":
            return found
        from .deriving import Spec

        spec = Spec(
            what, build, check, name, {part.name: path for part, path in parts}, isolate, timeout, force
        )  # fmt: skip
        builder, deadline = self._builder(), self._getter.patience(what.ref, None)
        if found is not None:
            return _Job((what.action, "again"), lambda deadline: builder.again(spec, found, deadline), deadline)
        return _Job((what.action, force), lambda deadline: builder.entry(spec, known, deadline), deadline)

    def _found(self, what: Derivation, verify: str) -> tuple[Entry | None, Entry | None]:
        """Return the entry of *what* if its product is here, or in a tier, as it was stored; else one that will not do.

        The record is not read again for that: it may be one that has come since, and will do.
        """
        ask = question(self._limits, what.ref, verify="full" if verify == "full" else "stat", policies=NONE)
        ask.own = bool(self._limits.policies)  # What another cache has made was looked at by nobody here.
        try:
            entry = self._entry_of(ask)
        except EntryNotFoundError:
            return None, None
        if entry.derivation is not None and stamps.hold(entry.path, entry.derivation.get("stamps") or {}):
            return entry, None
        return (self._examined(entry) if entry.path.startswith(f"{self.root}/") else None), entry

    def _part(self, label: str, one: InputLike) -> tuple[Part, str]:
        """Return what the input counts as, and where it is."""
        identity = None
        if isinstance(one, Input):
            identity = None if one.digest is None else check_digest(label, one.digest)
            one = one.ref
        if isinstance(one, Entry) and not object_stands(one.path, one.size, one.mtime_ns):
            one = one.key  # It has gone since, or was touched.
        if isinstance(one, Entry):
            return self._whole(label, one, identity), one.path
        if not isinstance(one, str | os.PathLike):
            raise UsageError(problem=f"the input {label!r} is a ref, a path or an Entry, not {type(one).__name__}")
        text, objects = os.fspath(one), f"{self.root}/{layout.OBJECTS}/"
        if text.startswith(objects):
            part = self._inside(label, text, text[len(objects) :])
            return (part if identity is None else replace(part, digest=identity, path="")), text
        entry = self._input(one)
        return self._whole(label, entry, identity), entry.path

    def _whole(self, label: str, entry: Entry, identity: str | None) -> Part:
        """Return what the content of *entry* counts as."""
        below = not entry.path.startswith(f"{self.root}/")
        return Part(label, identity or entry.digest, entry.digest, ref=entry.key, below=below)

    def _inside(self, label: str, path: str, below: str) -> Part:
        """Return what *path*, in an object of this cache, counts as."""
        obj, _, inside = below.partition("/")
        digest = Digest.parse(obj.replace("-", ":", 1))
        if not inside or not os.path.lexists(path):
            raise EntryNotFoundError(ref=path, root=self.root)
        name, _, within = inside.partition("/")
        if name == layout.LISTING:
            raise UsageError(problem=f"the input {label!r} is a file of the cache itself: {path}")
        return Part(label, digest, digest, path=os.path.normpath(within) if within else "", ref=name)

    def _input(self, ref: RefLike) -> Entry:
        """Return the entry of an input; what is on a disk of this machine is looked at, and fetched if it is new."""
        parsed = reference.parse(ref)
        if parsed.scheme != "file":
            return self._entry_of(question(self._limits, ref))
        from .patterns import Patterns

        tree = Patterns.parse(parsed.selection) if parsed.selection or parsed.is_tree else None
        if tree is None and os.path.isdir(parsed.path):
            tree = Patterns.of(None, None)
        ask = question(self._limits, ref, patterns=tree, max_age=None if self._limits.offline else 0)
        entry = self._entries.read(ask.ref.key)
        wanted = tree.match if tree is not None else (lambda _path: True)
        if entry is not None and stamps.is_current(parsed.path, entry.etag, wanted):
            return self._entry_of(question(self._limits, ref, patterns=tree))
        return self._entry_of(ask)

    def _entry_of(self, ask: Ask) -> Entry:
        # A hit needs no deadline, which takes five milliseconds to import.
        return self._getter.look(ask) or self._getter.fetched(ask, self._getter.deadline(ask.ref))

    def _examined(self, entry: Entry) -> Entry | None:
        """Return *entry*, whose content was read and is right, with its stamps on record; None if it is wrong."""
        from .events import Event
        from .verification import examine

        finding = examine(self.root, entry)
        if finding.state == "corrupt":
            self._tell(Event("quarantined", entry.key, detail=finding.moved_to))
        if finding.state != "ok" or entry.derivation is None:
            return None
        now = self._entries.read(entry.key)
        if now is not None and now.serial == entry.serial and entry.digest.is_tree:
            self._getter.noted(entry, derivation={**entry.derivation, "stamps": stamps.taken(entry.path)})
        return entry

    def _builder(self) -> Builder:
        from .deriving import Builder

        limits, room = self._limits, None
        if limits.capacity is not None:
            from .gc import Room

            room = Room(self.root, limits.capacity, limits.grace, self._tell)
        return Builder(self.root, self._leases(), lock_timeout=limits.lock_timeout, room=room, tell=self._tell)

    def _flights(self) -> Flights[Entry]:
        if self._builds is None:
            from .flights import Flights

            self._builds = Flights()  # Two threads may both come here first: then the lock parts them.
        return self._builds


class _Job(NamedTuple):
    """What brings a product that is not here: ``flight`` tells one from another."""

    flight: Hashable
    work: Callable[[Deadline], Entry]
    deadline: Deadline


def _check(build: Build, check: object, name: object, timeout: float | None, verify: str) -> None:
    """Raise UsageError for an argument that makes no sense."""
    if not callable(build):
        raise UsageError(problem=f"build={build!r:.100} makes no sense: a callable is expected")
    if check is not None and not callable(check):
        raise UsageError(problem=f"check={check!r:.100} makes no sense: a callable is expected")
    if name is not None and not isinstance(name, str):
        raise UsageError(problem=f"name={name!r:.100} makes no sense: a text is expected")
    if timeout is not None and not (is_seconds(timeout) and timeout > 0):
        raise UsageError(problem=f"timeout={timeout!r:.100} makes no sense: seconds above 0")
    if verify not in _VERIFY:
        raise UsageError(problem=f"verify={verify!r:.100} makes no sense: one of {', '.join(_VERIFY)}")


def _to_be_got_again(error: InputGoneError | NotFoundError, before: InputGoneError | None) -> InputGoneError:
    """Return *error* if an input that has gone can be got once more; raise why not, if *before* it had gone too."""
    if isinstance(error, InputGoneError):
        return error
    if before is None or before.error is None:
        raise error
    raise before.error from error  # What befell it says more than that it is not here now.


def _labelled(inputs: Iterable[InputLike] | Mapping[str, InputLike]) -> list[tuple[str, InputLike]]:
    """Return the inputs by name, in an order that does not matter where they have names of their own."""
    if isinstance(inputs, Mapping):
        for label in inputs:
            if not isinstance(label, str) or not label:
                raise UsageError(problem=f"the name {label!r:.100} of an input makes no sense: a text is expected")
        return sorted(inputs.items())
    if isinstance(inputs, str | os.PathLike | Entry | Input) or not isinstance(inputs, Iterable):
        raise UsageError(problem=f"inputs is a list or a dict of refs, not a single {type(inputs).__name__}")
    return [(str(number), one) for number, one in enumerate(inputs)]
