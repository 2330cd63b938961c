"""Every error that modelcache raises, in one tree.

::

    ModelCacheError                              exit code 1
    ├── UsageError (ValueError)                            2  the call itself makes no sense; raised before any I/O
    │   ├── InvalidReferenceError
    │   ├── InvalidDigestError
    │   ├── UnknownSchemeError
    │   ├── NotListableError                                  its source cannot say which files there are
    │   ├── ProviderNotInstalledError                         onnxruntime was built without it
    │   ├── NoInterpreterError                                what is built in a process of its own, and none starts
    │   ├── UnsupportedPlatformError                          it needs another system than this one
    │   ├── UnsupportedArchiveError                           no archive, or one that this Python cannot unpack
    │   ├── ConfigurationError
    │   │   └── ConfigFileError                               a mistake in a file with settings: file, line, key
    │   │       └── CacheConfigError                          the same in the config.toml of a cache itself
    │   └── ManifestError                                     a mistake in models.toml or models.lock: file, line, key
    ├── BatchError                                         3  some of many failed; each with its own error
    ├── NotFoundError (FileNotFoundError)                  4
    │   ├── RemoteNotFoundError                               404, 410, or a file that is not there
    │   │   ├── RepositoryNotFoundError                       the hub has none, or shows none to this client
    │   │   └── RevisionNotFoundError                         the repository has no such branch, tag or commit
    │   ├── NothingMatchesError                               no file of a repository matches the patterns
    │   ├── EntryNotFoundError                                nothing of that name in the cache
    │   ├── NoSourceError                                     it was put here: nothing to fetch it from again
    │   └── NotInBundleError                                  an import was asked for what the bundle does not hold
    ├── AccessDeniedError (PermissionError)                5  401, 403, 407, 451, or a file that may not be read
    │   └── GatedRepositoryError                              its terms were not accepted, or nobody said who asks
    ├── NetworkError (ConnectionError)                     6
    │   ├── UnreachableError                                  refused, no such host, TLS that cannot be trusted
    │   ├── InterruptedTransferError                          reset, or ended before the announced length
    │   ├── StalledError (TimeoutError)
    │   ├── DeadlineError (TimeoutError)
    │   ├── HttpStatusError                                   429, 5xx and every status without a class of its own
    │   ├── RedirectError
    │   ├── ProtocolError                                     an answer that contradicts itself or the request
    │   └── MirrorsExhaustedError                             several places were asked, none could serve
    ├── DerivationError                                   13  what was to be derived could not be built
    │   ├── BuildFailedError                                  the build raised an error
    │   ├── BuildDiedError                                    its process died
    │   ├── BuildTimeoutError (TimeoutError)
    │   ├── ProductError                                      it left nothing, a link, or something elsewhere
    │   ├── ProductRefusedError                               the product did not pass its check
    │   ├── NotReproducibleError                              built again, it was another one
    │   ├── ModelRefusedError                                 the runtime does not take the model
    │   └── RepeatedFailureError                              three times the same way: left alone for a while
    ├── IntegrityError (ValueError)                        7
    │   ├── DigestMismatchError
    │   ├── SizeMismatchError
    │   ├── EmptyContentError
    │   ├── ExternalDataError                                 a model's external data is missing, or elsewhere
    │   ├── ModelTooLargeError                                a model that is larger than its format can be
    │   ├── MissingCompanionError                             a file of a tree needs one that is not in it
    │   ├── ListingError                                      a list of files that cannot all be stored as such
    │   ├── ArchiveError                                      an archive that is damaged, or made to do damage
    │   │   └── ArchiveLimitError                             it unpacks to more than is allowed
    │   ├── PackageError                                      no Core ML package, or one that is not whole
    │   ├── BundleError                                       a bundle that cannot be imported as it is
    │   │   └── MissingContentsError                          it leaves out contents that are not in the cache
    │   └── CorruptObjectError
    ├── NoSpaceError (OSError, ENOSPC)                     8
    │   └── CapacityError                                     the cache may use no more of the disk
    ├── LockTimeoutError (TimeoutError)                    9
    ├── LocalNotFoundError (FileNotFoundError)            10  offline, and not in the cache
    ├── LockDriftError (ValueError)                       11  models.lock and models.toml or the source disagree
    ├── PolicyError (PermissionError)                     12  a policy in force refuses it
    │   └── SignatureError                                    not signed by whom the policy asks for
    ├── MissingLibraryError (ImportError)                  1  an extra that was not installed
    ├── ModelLoadError (RuntimeError)                      1  a runtime does not load what is whole
    ├── PinnedError (PermissionError)                      1
    ├── LeasedError (PermissionError)                      1  in use by a live process
    ├── ClosedError (RuntimeError)                         1
    ├── CancelledError                                     1  given up by its caller; what had arrived can be resumed
    ├── BackendError                                      14  a backend of the archive failed, or refused
    │   ├── BackendDownError                                  it failed before, and is left alone for a while
    │   ├── BackendSetupError                                 it cannot be used at all: no bucket, no database
    │   ├── BackendAccessError (PermissionError)           5  it does not let these credentials in
    │   ├── RejectedError                                     it will never take this one write
    │   ├── NoConditionalWritesError                          it overwrites where it was asked not to
    │   ├── QueueFullError                                    no room for more writes, and none may be dropped
    │   └── DamagedReplicaError (ValueError)               7  what it holds is not what its name says
    ├── NotInArchiveError (FileNotFoundError)              4  no backend that answers has it
    ├── ArchiveClosedError (RuntimeError)                  1  an archivist that was shut down
    └── StorageError (OSError)                             1  the root cannot be used, or the file system failed
        ├── NoLocksError                                      gc does not run without locks that work
        ├── RootError                                         missing, read-only, a file, or somebody else's
        ├── LinkError                                         a symbolic link where the cache has its own
        ├── GroupError                                        the cache belongs to a group that this user is not in
        └── FormatError                                       written by a newer modelcache

Each error carries its facts as attributes, survives pickling (it may be raised in a worker process), has an
``exit_code``, a ``summary`` (what happened, to what, what was done about it) and a ``hint`` (what to do now);
``str(error)`` is both. ``transient`` says whether asking the same source again can help.
"""

from __future__ import annotations

from .archives import ArchiveClosedError as ArchiveClosedError
from .archives import BackendAccessError as BackendAccessError
from .archives import BackendDownError as BackendDownError
from .archives import BackendError as BackendError
from .archives import BackendSetupError as BackendSetupError
from .archives import DamagedReplicaError as DamagedReplicaError
from .archives import NoConditionalWritesError as NoConditionalWritesError
from .archives import NotInArchiveError as NotInArchiveError
from .archives import QueueFullError as QueueFullError
from .archives import RejectedError as RejectedError
from .base import BatchError as BatchError
from .base import ModelCacheError as ModelCacheError
from .builds import BuildDiedError as BuildDiedError
from .builds import BuildFailedError as BuildFailedError
from .builds import BuildTimeoutError as BuildTimeoutError
from .builds import DerivationError as DerivationError
from .builds import ModelLoadError as ModelLoadError
from .builds import ModelRefusedError as ModelRefusedError
from .builds import NotReproducibleError as NotReproducibleError
from .builds import ProductError as ProductError
from .builds import ProductRefusedError as ProductRefusedError
from .builds import RepeatedFailureError as RepeatedFailureError
from .calls import CacheConfigError as CacheConfigError
from .calls import CancelledError as CancelledError
from .calls import ClosedError as ClosedError
from .calls import ConfigFileError as ConfigFileError
from .calls import ConfigurationError as ConfigurationError
from .calls import InvalidDigestError as InvalidDigestError
from .calls import InvalidReferenceError as InvalidReferenceError
from .calls import ManifestError as ManifestError
from .calls import MissingLibraryError as MissingLibraryError
from .calls import NoInterpreterError as NoInterpreterError
from .calls import NotListableError as NotListableError
from .calls import ProviderNotInstalledError as ProviderNotInstalledError
from .calls import UnknownSchemeError as UnknownSchemeError
from .calls import UnsupportedArchiveError as UnsupportedArchiveError
from .calls import UnsupportedPlatformError as UnsupportedPlatformError
from .calls import UsageError as UsageError
from .contents import ArchiveError as ArchiveError
from .contents import ArchiveLimitError as ArchiveLimitError
from .contents import BundleError as BundleError
from .contents import CorruptObjectError as CorruptObjectError
from .contents import DigestMismatchError as DigestMismatchError
from .contents import EmptyContentError as EmptyContentError
from .contents import ExternalDataError as ExternalDataError
from .contents import IntegrityError as IntegrityError
from .contents import ListingError as ListingError
from .contents import LockDriftError as LockDriftError
from .contents import MissingCompanionError as MissingCompanionError
from .contents import MissingContentsError as MissingContentsError
from .contents import ModelTooLargeError as ModelTooLargeError
from .contents import PackageError as PackageError
from .contents import PolicyError as PolicyError
from .contents import SignatureError as SignatureError
from .contents import SizeMismatchError as SizeMismatchError
from .places import AccessDeniedError as AccessDeniedError
from .places import DeadlineError as DeadlineError
from .places import EntryNotFoundError as EntryNotFoundError
from .places import GatedRepositoryError as GatedRepositoryError
from .places import HttpStatusError as HttpStatusError
from .places import InterruptedTransferError as InterruptedTransferError
from .places import LocalNotFoundError as LocalNotFoundError
from .places import MirrorsExhaustedError as MirrorsExhaustedError
from .places import NetworkError as NetworkError
from .places import NoSourceError as NoSourceError
from .places import NotFoundError as NotFoundError
from .places import NothingMatchesError as NothingMatchesError
from .places import NotInBundleError as NotInBundleError
from .places import ProtocolError as ProtocolError
from .places import RedirectError as RedirectError
from .places import RemoteNotFoundError as RemoteNotFoundError
from .places import RepositoryNotFoundError as RepositoryNotFoundError
from .places import RevisionNotFoundError as RevisionNotFoundError
from .places import StalledError as StalledError
from .places import UnreachableError as UnreachableError
from .storage import CapacityError as CapacityError
from .storage import FormatError as FormatError
from .storage import GroupError as GroupError
from .storage import LeasedError as LeasedError
from .storage import LinkError as LinkError
from .storage import LockTimeoutError as LockTimeoutError
from .storage import NoLocksError as NoLocksError
from .storage import NoSpaceError as NoSpaceError
from .storage import PinnedError as PinnedError
from .storage import RootError as RootError
from .storage import StorageError as StorageError
from .storage import storage_error as storage_error
