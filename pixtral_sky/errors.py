"""What went wrong, in one line, and what to do next."""

from __future__ import annotations


class PixtralSkyError(Exception):
    """An error that a person reads: ``what`` happened, and in ``hint`` the command that helps next.

    Neither may hold a secret: both are printed.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} {self.hint}".strip()


class UsageError(PixtralSkyError):
    """Wrong options, arguments or files."""

    exit_code = 2


class NoEndpoint(UsageError):
    """No endpoint is given or remembered."""


class PictureError(PixtralSkyError):
    """Something given as a picture cannot be sent as one."""


class LimitError(PixtralSkyError):
    """The request has more pictures or tokens than the endpoint takes."""


class EndpointError(PixtralSkyError):
    """The endpoint did not do what it was asked."""


class Unreachable(EndpointError):
    """Nothing answers at its address."""


class NoTunnel(Unreachable):
    """Its tunnel cannot be opened (ssh, or its configuration, is missing), and a retry would not help."""


class Untrusted(Unreachable):
    """Its certificate is for another name, or of an authority that is not known here."""


class Unauthorized(EndpointError):
    """401 or 403: the key is missing or wrong."""


class Busy(EndpointError):
    """429, 503, or a balancer without a ready replica.

    ``retry_after``: how many seconds the server asks to wait; 0 if it does not say.
    """

    def __init__(self, what: str, hint: str = "", retry_after: float = 0) -> None:
        super().__init__(what, hint)
        self.retry_after = retry_after


class Refused(EndpointError):
    """Any other answer that is not 2xx, with the server's reason."""


class Failed(Refused):
    """5xx: the server has failed; the request may be right."""


class BrokenAnswer(EndpointError):
    """The answer is incomplete, too late, or not what the API specifies."""


class NotAnAPI(EndpointError):
    """Something answers, but it is not an OpenAI-compatible API."""


class SchemaError(PixtralSkyError):
    """The answer does not fit the JSON Schema that was asked for."""

    def __init__(self, what: str, hint: str = "", answer: str = "") -> None:
        super().__init__(what, hint)
        self.answer = answer


class RehearsalError(PixtralSkyError):
    """The engine could not be made or started on this machine."""


class SkyError(PixtralSkyError):
    """SkyPilot did not do what it was asked."""


class NoPrices(PixtralSkyError):
    """SkyPilot's catalogs of prices cannot be read, or it is not installed."""


class HubError(PixtralSkyError):
    """The Hugging Face Hub does not give the model with this token."""
