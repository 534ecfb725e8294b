"""The errors that hybridqa raises on purpose.

    HybridQAError
    ├── ConfigError (ValueError)            a setting is missing or wrong
    ├── MissingPackageError (ImportError)   an optional package is not installed
    ├── NotFoundError (LookupError)
    │   ├── StoreNotFoundError              no store at this path
    │   ├── CollectionNotFoundError
    │   ├── DocumentNotFoundError
    │   └── ModuleNotFoundInStoreError
    ├── InputError (ValueError)             what the caller gave cannot be used
    │   ├── UnreadableDocumentError         missing, empty, binary, without text, too large
    │   └── QuestionError                   empty, or longer than the model's context
    ├── StoreError (RuntimeError)           the store on disk refuses
    │   ├── CorruptStoreError               a file of the store is damaged
    │   ├── EmbedderMismatchError           vectors made by another embedder
    │   └── StorageFullError (OSError)      nothing more can be written
    ├── ModelError (RuntimeError)           a base model or embedder cannot be had or loaded
    ├── AdapterError (ValueError)
    │   ├── UnsupportedAdapterError         DoRA, bias, modules_to_save, unknown layout
    │   ├── BaseModelMismatchError          a module of another base model
    │   ├── RankLimitError                  ranks sum past what the engine allows
    │   └── CorruptModuleError              a module file that does not match its manifest
    ├── EngineError (RuntimeError)          the engine could not answer this request
    │   └── EngineClosedError
    └── TrainingError (RuntimeError)        a module could not be distilled

Every message names the thing with `!r`, says what was expected, and ends with the next command where there is one.
"""


class HybridQAError(Exception):
    """Root of the tree."""


class ConfigError(HybridQAError, ValueError):
    """A setting is missing or wrong."""


class MissingPackageError(HybridQAError, ImportError):
    """An optional package is not installed."""


class NotFoundError(HybridQAError, LookupError):
    """Something that was asked for by name is not there."""


class StoreNotFoundError(NotFoundError):
    """There is no store at this path."""


class CollectionNotFoundError(NotFoundError):
    """The store has no collection of this name."""


class DocumentNotFoundError(NotFoundError):
    """The collection has no document of this id."""


class ModuleNotFoundInStoreError(NotFoundError):
    """The registry has no module, or no such version of it."""


class InputError(HybridQAError, ValueError):
    """What the caller gave cannot be used."""


class UnreadableDocumentError(InputError):
    """A document is missing, empty, binary, without text, or too large."""


class QuestionError(InputError):
    """A question is empty, or longer than the model's context."""


class StoreError(HybridQAError, RuntimeError):
    """The store on disk refuses."""


class CorruptStoreError(StoreError):
    """A file of the store is damaged."""


class EmbedderMismatchError(StoreError):
    """The store's vectors were made by another embedder."""


class StorageFullError(StoreError, OSError):
    """Nothing more can be written to the store's disk."""


class ModelError(HybridQAError, RuntimeError):
    """A base model or an embedder cannot be had or loaded."""


class AdapterError(HybridQAError, ValueError):
    """A LoRA adapter cannot be used."""


class UnsupportedAdapterError(AdapterError):
    """The adapter has parts that a rank-concatenated stack cannot hold."""


class BaseModelMismatchError(AdapterError):
    """The adapter belongs to another base model."""


class RankLimitError(AdapterError):
    """The ranks of a stack sum past what the engine allows."""


class CorruptModuleError(AdapterError):
    """A module's files do not match its manifest."""


class EngineError(HybridQAError, RuntimeError):
    """The engine could not answer this request; it goes on living."""


class EngineClosedError(EngineError):
    """The engine has been closed."""


class TrainingError(HybridQAError, RuntimeError):
    """A module could not be distilled."""
