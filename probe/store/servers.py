"""What servers that have files can do to us, in words: which are meant, who may ask them, what their errors say. Asks none."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from probe.addresses import FSSPEC, authority
from probe.errors import RunError, StorageFull

GO_ON = "What is finished is kept, and the same command with --resume goes on"
WAIT = 15.0  # seconds of one request, after which a line says that it is waited for


class Service(NamedTuple):
    """One kind of file system: what its URLs look like, where it is told who asks, and what says where it is."""

    form: str
    credentials: str
    place: str = "the URL"


S3 = Service(
    "s3://BUCKET/RUN", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE), or the role of the machine",
    "AWS_ENDPOINT_URL",
)  # fmt: skip
GOOGLE = Service(
    "gs://BUCKET/RUN", "GOOGLE_APPLICATION_CREDENTIALS, gcloud auth application-default login, or gs://anonymous@BUCKET/RUN"
)
AZURE = Service(
    "abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/RUN",
    "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, az login, or the identity of the machine",
)
HADOOP = Service("hdfs://HOST:PORT/RUN", "HADOOP_USER_NAME, or kinit")
OTHER = Service(f"{FSSPEC}PROTOCOL://FOLDER/RUN", "what fsspec's library for it reads, or fsspec's own configuration")
SERVICES = {
    "s3": S3, "gs": GOOGLE, "gcs": GOOGLE, "abfs": AZURE, "abfss": AZURE, "hdfs": HADOOP, "viewfs": HADOOP,
    "file": Service("file:///FOLDER/RUN", "the owner and the mode of the folder"),
}  # fmt: skip
_DENIED = (  # what their libraries say; of the first that is found the others are not looked for
    "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE", "MISSING_AUTHENTICATION_TOKEN",
    "UNRECOGNIZED_CLIENT", "INVALID_CLIENT_TOKEN_ID", "EXPIRED_TOKEN", "NOT_INITIALIZED",
    "PERMISSION_DENIED", "UNAUTHENTICATED", "OAuth2 access token",
    "AuthenticationException", "AuthenticationFailed", "AuthorizationFailure", "AuthorizationPermissionMismatch",
)  # fmt: skip
_NO_BUCKET = ("NO_SUCH_BUCKET", "NoSuchBucket", "ContainerNotFound")
_NO_ANSWER = (
    "NETWORK_CONNECTION", "REQUEST_TIMEOUT", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "UNAVAILABLE", "DEADLINE_EXCEEDED",
    "Fail to get a new connection",
)  # fmt: skip


def form_of(url: str) -> str:
    """What URLs of this kind look like."""
    return f"as {_service(url).form}"


def credentials_of(url: str) -> str:
    """Where it is found who asks a server of this kind."""
    return _service(url).credentials


def _service(url: str) -> Service:
    return SERVICES.get(url.partition(":")[0].lower(), OTHER if url.startswith(FSSPEC) else S3)


def of_server(url: str, error: Exception, *, writes: bool) -> RunError:
    """What a library raised that asked a server: one sentence, and what to do."""
    what, hint = _in_words(url, error)
    if writes:
        return StorageFull(f"cannot write '{url}': {what}", hint=f"{hint} {GO_ON}")
    return RunError(f"cannot read '{url}': {what}", hint=hint)


def _in_words(url: str, error: Exception) -> tuple[str, str]:
    service, text = _service(url), f"{type(error).__name__} {error}"
    if "libjvm" in text or "libhdfs" in text:
        return first_line(error), "it needs Java and Hadoop's library here: JAVA_HOME, HADOOP_HOME, CLASSPATH"
    if isinstance(error, PermissionError) or any(one in text for one in _DENIED):
        return "access is denied", f"is one of these set, and may it do this: {service.credentials}?"
    if any(one in text for one in _NO_BUCKET):
        return f"there is no bucket '{authority(url)}'", "make it, or is it another's name?"
    if isinstance(error, ConnectionError) or any(one in text for one in _NO_ANSWER):
        return "the server does not answer", f"is it up, and {service.place} right?"
    return first_line(error), "is the URL right, and the server up?"


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@contextmanager
def told_of_waiting(url: str) -> Iterator[None]:
    """Say once that a server is waited for, where one request takes long: the libraries ask again for minutes, in silence."""
    text = f"'{url}': the server has not answered a request for {WAIT:.0f} s; it is waited for, and asked again"
    timer = threading.Timer(WAIT, warnings.warn, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
