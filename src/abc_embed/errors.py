"""Every error that a user can cause, in one tree.

Each message is one plain sentence that says what is wrong and how to mend it; the command line
prints it as it stands and leaves with `exit_code`. A mistake of *ours* is not in this tree: it
stays a plain Python exception, so that its traceback is seen and mended.

    AbcError                      exit 1
    ├── UsageError                exit 2: the call itself is wrong (an option, an argument)
    ├── DeviceError               a device or number format that this machine does not have
    ├── OutOfMemoryError          the device has too little memory for a batch
    ├── NotFiniteError            the numbers overflowed; another number format is needed
    ├── InputError                one item cannot be embedded; bulk work may skip it
    │   ├── ImageError
    │   │   ├── ImageNotFoundError    no such file, or a folder where a file is meant
    │   │   ├── RemoteImageError      an http(s) address: nothing is ever fetched for an item
    │   │   ├── NotAnImageError       the bytes are no picture that Pillow can read
    │   │   ├── TruncatedImageError   the picture breaks off, or its data is damaged
    │   │   ├── ImageTooLargeError    more pixels than the decode limit (decompression bomb)
    │   │   └── AspectError           too long and thin for the model
    │   └── TextError
    │       ├── EmptyTextError
    │       └── TextTooLongError
    ├── ConfigError               a configuration value that cannot be
    ├── CheckpointError           model files that are missing, damaged or do not fit
    │   ├── UnknownModelError     a name that is neither known nor a folder
    │   └── OfflineError          files must be fetched and there is no network
    ├── DataError                 a data set or a record of it
    ├── EndpointError             an endpoint that cannot be used: wrong key or model, or silent
    │   ├── AskError              one request of many failed; the others go on
    │   └── CostLimitError        asking on could cost more than was allowed
    ├── TrainingError             a run that cannot start, go on or resume
    ├── OutputError               a result that cannot be written
    ├── RequestError              a request to the server that it refuses, with the HTTP status
    └── MissingExtraError         an optional package is absent; names its pip line
"""


class AbcError(Exception):
    """Root of the tree: one plain sentence, and the exit code of a command that ends with it."""

    exit_code: int = 1
    reported_elsewhere: bool = False
    """Another process of the same run says it to the user, so this one keeps quiet."""


class UsageError(AbcError):
    """The call itself is wrong: an option that does not exist, arguments that contradict."""

    exit_code = 2


class DeviceError(AbcError):
    """A device or number format that this machine, or this build of torch, does not have."""


class OutOfMemoryError(AbcError):
    """The device has too little memory for a batch."""


class NotFiniteError(AbcError):
    """The model computed values that are no numbers, as float16 does where it overflows."""


class InputError(AbcError):
    """One item cannot be embedded. Bulk work may skip it and go on."""


class ImageError(InputError):
    """The image of an item cannot be used."""


class ImageNotFoundError(ImageError):
    """There is no such file, or there is a folder where a file is meant."""


class RemoteImageError(ImageError):
    """An image was given as a web address; nothing is ever fetched for an item."""


class NotAnImageError(ImageError):
    """The bytes are no picture that can be read."""


class TruncatedImageError(ImageError):
    """The picture breaks off early or its data is damaged."""


class ImageTooLargeError(ImageError):
    """The picture would unpack to more pixels than the decode limit."""


class AspectError(ImageError):
    """The picture is too long and thin for the model."""


class TextError(InputError):
    """The text or instruction of an item cannot be used."""


class EmptyTextError(TextError):
    """There is no text to embed."""


class TextTooLongError(TextError):
    """The item has more tokens than the model can read."""


class ConfigError(AbcError):
    """A configuration value is missing, unknown or out of range."""


class CheckpointError(AbcError):
    """Model files are missing, damaged, or do not fit the model."""


class UnknownModelError(CheckpointError):
    """A model name that is neither known nor an existing folder."""


class OfflineError(CheckpointError):
    """Model files would have to be fetched and there is no network."""


class DataError(AbcError):
    """A data set, or one record of it, cannot be read."""


class EndpointError(AbcError):
    """A VLM endpoint, or a server of ours, refuses the key or the model, or does not answer."""


class AskError(EndpointError):
    """One request to a VLM failed for good. Bulk work may go on with the others."""


class CostLimitError(EndpointError):
    """The next request could cost more than was allowed; what was paid for is kept."""


class TrainingError(AbcError):
    """A training run cannot start, go on or resume."""


class OutputError(AbcError):
    """A result cannot be written."""


class RequestError(AbcError):
    """A request to the server is refused: one sentence, the place in the request, the status."""

    def __init__(self, message: str, place: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.place = place
        """Where in the request, like `input[3].image`; None for all of it."""
        self.status = status
        """The HTTP status of the answer."""


class MissingExtraError(AbcError):
    """An optional package is not installed."""

    @classmethod
    def of(cls, extra: str, purpose: str) -> "MissingExtraError":
        """The error for a missing optional package, with the pip line that mends it.

        `extra` is the name in brackets (`"mine"`), `purpose` what needed it (`"writing
        Parquet"`).
        """
        return cls(f"{purpose} needs an optional package; run: pip install 'abc-embed[{extra}]'")
