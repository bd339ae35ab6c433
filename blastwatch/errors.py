"""Every error that Blastwatch raises on purpose.

    BlastwatchError                exit code 1: it could not be done
      UsageError                   exit code 2: the call itself is wrong
        SettingsError                a setting has a value that cannot be used
        PolicyError                  the promotion policy cannot be used
      CheckRefused                 exit code 3: a check that guards the evidence said no
        LeakFound                    patients would stand on two sides of a split
        PromotionRefused             a version failed a gate of the registry
        HistoryBroken                the history, an alias or a model file is not what was signed
      DataError                    the cells, the manifest or a split cannot be used
        ImageRejected                one image cannot be read; `reason` is a short stable word
      PackageError                 a model package is incomplete, changed or of another format
        GoldenMismatch               an engine does not give a package's own answers for its golden cells
        FlipsTooOften                an engine says another label than float32 more often than the policy bears
        TooLarge                     a package needs more memory or disk than there is
      RegistryError                the registry could not answer
        RegistryUnreachable          no connection to MLflow
        VersionNotFound              no such model version
        AliasNotSet                  nothing carries the alias (no champion yet)
        AliasMoved                   an alias stands elsewhere than the history says: moved behind its back
        SignatureInvalid             signed by nobody, by an unknown key, or for something else
        NotPermitted                 the account or the key may not do this
        RegistryBusy                 another writer did not finish in time
      ServiceError                 the prediction service answered with a problem
        ServiceUnreachable           no connection to the prediction service

A message says what was expected, what came and what to do next.
"""

from typing import ClassVar


class BlastwatchError(Exception):
    """Base of all errors above; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class UsageError(BlastwatchError):
    exit_code = 2


class SettingsError(UsageError):
    pass


class PolicyError(UsageError):
    pass


class CheckRefused(BlastwatchError):
    exit_code = 3


class LeakFound(CheckRefused):
    pass


class PromotionRefused(CheckRefused):
    pass


class HistoryBroken(CheckRefused):
    pass


class DataError(BlastwatchError):
    pass


class ImageRejected(DataError):
    """One image cannot be used. `reason` is one of the words of `REASONS`, safe as a metric label."""

    REASONS: ClassVar[tuple[str, ...]] = (
        "empty",
        "not-an-image",
        "format",
        "mode",
        "frames",
        "truncated",
        "too-large",
        "too-small",
    )

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PackageError(BlastwatchError):
    pass


class GoldenMismatch(PackageError):
    pass


class FlipsTooOften(PackageError):
    pass


class TooLarge(PackageError):
    pass


class NotOpened(PackageError):
    pass


class EngineBroken(PackageError):
    pass


class RegistryError(BlastwatchError):
    pass


class RegistryUnreachable(RegistryError):
    pass


class VersionNotFound(RegistryError):
    pass


class AliasNotSet(RegistryError):
    pass


class AliasMoved(RegistryError):
    pass


class SignatureInvalid(RegistryError):
    pass


class NotPermitted(RegistryError):
    pass


class RegistryBusy(RegistryError):
    pass


class ServiceError(BlastwatchError):
    """The service answered with a problem document (RFC 9457); `status` is the HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class ServiceUnreachable(BlastwatchError):
    pass
