"""What went wrong, in one line, and what to do next.

PixtralSkyError
  UsageError          wrong options, arguments or files                     (exit code 2)
    NoEndpoint        no endpoint is given or remembered
  PictureError        something given as a picture cannot be sent
  LimitError          more pictures or tokens than the endpoint takes
  EndpointError       the endpoint did not do what it was asked
    Unreachable       nothing answers at its address
      NoTunnel        its tunnel cannot be opened, and a retry would not help
      Untrusted       its certificate is for another name, or of an authority that is not known here
    Unauthorized      401 or 403: the key is missing or wrong
    Busy              429, 503, or a balancer without a ready replica
    Refused           any other answer that is not 2xx, with the server's reason
      Failed          5xx: the request may be right, and the server has failed
    BrokenAnswer      the answer is incomplete, too late, or not what the API specifies
    NotAnAPI          the answer is not from an OpenAI-compatible API
  SchemaError         the answer does not fit the JSON Schema that was asked for
  RehearsalError      the engine could not be made or started on this machine
  SkyError            SkyPilot did not do what it was asked
  HubError            the Hugging Face Hub does not give the model with this token
"""

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
    exit_code = 2


class NoEndpoint(UsageError):
    pass


class PictureError(PixtralSkyError):
    pass


class LimitError(PixtralSkyError):
    pass


class EndpointError(PixtralSkyError):
    pass


class Unreachable(EndpointError):
    pass


class NoTunnel(Unreachable):
    pass


class Untrusted(Unreachable):
    pass


class Unauthorized(EndpointError):
    pass


class Busy(EndpointError):
    """``retry_after``: how many seconds the server asks to wait; 0 if it does not say."""

    def __init__(self, what: str, hint: str = "", retry_after: float = 0) -> None:
        super().__init__(what, hint)
        self.retry_after = retry_after


class Refused(EndpointError):
    pass


class Failed(Refused):
    pass


class BrokenAnswer(EndpointError):
    pass


class NotAnAPI(EndpointError):
    pass


class SchemaError(PixtralSkyError):
    pass


class RehearsalError(PixtralSkyError):
    pass


class SkyError(PixtralSkyError):
    pass


class HubError(PixtralSkyError):
    pass
