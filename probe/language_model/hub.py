"""Models of the Hub: its cache on this machine first, then one quick question, then a download. Loads nothing."""

from __future__ import annotations

import json
import re
import threading
import warnings
from pathlib import Path
from typing import Any

from probe.errors import BadModel, UnknownModel
from probe.language_model.checkpoint import Checkpoint, is_complete
from probe.language_model.home import Progress
from probe.language_model.names import unknown

PATIENCE = 3.0  # seconds to wait for a first sign of the Hub
_SMALL = re.compile(r"[^/]+\.(json|jinja|model|txt|tiktoken)|chat_template/[^/]+|additional_chat_templates/[^/]+")
_CODE = re.compile(r"[^/]+\.py")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLES = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


class NoAnswer(UnknownModel):
    """The Hub could not be asked, or stopped answering."""


def cached(repo: str, *, revision: str | None = None, allow_pickle: bool = False) -> Path | None:
    """The snapshot of `repo` in the Hugging Face cache if it is there and whole; no network."""
    folder = _cache() / f"models--{repo.replace('/', '--')}"
    wanted = revision or "main"
    ref = folder / "refs" / wanted
    commit = ref.read_text().strip() if ref.is_file() else wanted
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() and is_complete(snapshot, allow_pickle=allow_pickle) else None


def cached_models() -> dict[str, Path]:
    """Hub id -> snapshot of every whole model in the Hugging Face cache (branch `main`)."""
    ids = [folder.name.removeprefix("models--").replace("--", "/") for folder in sorted(_cache().glob("models--*"))]
    return {repo: snapshot for repo in ids if (snapshot := cached(repo)) is not None}


def obtain(
    name: str,
    repo: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    code: bool = False,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """The snapshot of `repo`: from the cache if it is whole there (unless `refresh`), else downloaded.

    Raises `NoAnswer` if the Hub is needed and cannot be reached, `UnknownModel` if it has no such model or revision,
    `BadModel` if the model is gated or has no weights that may be loaded. `code` fetches Python files too.
    """
    snapshot = cached(repo, revision=revision, allow_pickle=allow_pickle)
    if snapshot is None or refresh:
        try:
            snapshot = _download(name, repo, revision=revision, allow_pickle=allow_pickle, code=code, progress=progress)
        except NoAnswer as error:
            if snapshot is None:
                raise
            warnings.warn(f"kept the copy on this machine: {error.message}", stacklevel=2)
    return Checkpoint(name, snapshot, "hub", revision=snapshot.name)


def offline() -> bool:
    """Whether the user asked for no network (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def reachable(patience: float = PATIENCE) -> bool:
    """Whether the Hub answers at all within `patience` seconds: one request, no retries, name look-up included."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answers = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=patience).status_code)
        except _network_errors():
            answers.clear()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    return bool(answers)


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _download(name: str, repo: str, *, revision: str | None, allow_pickle: bool, code: bool, progress: Progress | None) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if offline():
        raise NoAnswer(
            f"'{name}' is not in the local cache, and HF_HUB_OFFLINE is set",
            hint=_nearest(name, "unset HF_HUB_OFFLINE to download it"),
        )
    if not reachable():
        raise NoAnswer(
            f"'{name}' is not on this machine, and no Hub answers at {constants.ENDPOINT}",
            hint=_nearest(name, "go online once, or give a directory or a .gguf file"),
        )
    try:
        files = _wanted(name, repo, revision=revision, allow_pickle=allow_pickle, code=code)
        done, total = 0, sum(files.values())
        path = Path()
        for file, size in files.items():
            counting = _counter(f"downloading {repo}", done, total, progress)
            path = Path(hf_hub_download(repo, file, revision=revision, tqdm_class=counting))
            done += size
        if progress:
            progress(f"downloading {repo}", total, total)
        return Path(str(path).removesuffix(file))
    except GatedRepoError as error:
        raise BadModel(
            f"'{repo}' is gated", hint=f"accept its terms at {constants.ENDPOINT}/{repo}, then: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownModel(f"'{repo}' has no revision '{revision}'", hint="give a branch, a tag or a commit") from error
    except RepositoryNotFoundError as error:
        raise unknown(name, "no such directory, and no such model on the Hub (or a private one)") from error
    except _network_errors() as error:
        raise NoAnswer(
            f"the download of '{repo}' broke off: {_line(error)}", hint="run it again: it goes on from there"
        ) from error


def _wanted(name: str, repo: str, *, revision: str | None, allow_pickle: bool, code: bool) -> dict[str, int]:
    """File -> bytes of what loading needs, small files first; one format of the weights only."""
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=30).siblings or []
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in siblings}
    weights = [file for file in sizes if _WEIGHTS.fullmatch(file)]
    pickles = [file for file in sizes if _PICKLES.fullmatch(file)]
    if not weights and allow_pickle:
        weights = pickles
    if not weights:
        ggufs = [file for file in sizes if file.endswith(".gguf")]
        if pickles:
            hint = "if you trust them: --allow-pickle (in Python allow_pickle=True)"
            raise BadModel(f"'{name}' has its weights only as pickles, which can run code", hint=hint)
        hint = f"download one and give its path: {ggufs[0]}" if ggufs else "expected model.safetensors or its parts"
        raise BadModel(f"'{name}' has no safetensors weights on the Hub", hint=hint)
    small = [file for file in sizes if _SMALL.fullmatch(file) or (code and _CODE.fullmatch(file))]
    return {file: sizes[file] for file in (*small, *weights)}


def _counter(what: str, before: int, total: int, progress: Progress | None) -> Any:
    """A class for the Hub's progress bars that draws nothing and reports bytes instead."""
    from tqdm import tqdm

    class Counter(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**{k: v for k, v in options.items() if k != "name"}, "disable": True})
            self.bytes = options.get("initial") or 0

        def update(self, n: float | None = 1) -> None:
            self.bytes += n or 0
            if progress:
                progress(what, min(before + int(self.bytes), total), total)

    return Counter


def _network_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises when there is no good answer: its HTTP library's root of errors, and OSError."""
    from huggingface_hub.errors import HfHubHTTPError

    bases = HfHubHTTPError.__bases__
    assert all(issubclass(base, Exception) for base in bases), bases
    return bases


def _nearest(name: str, otherwise: str) -> str:
    """A bare word is more likely a misspelt alias than a model to download."""
    hint = unknown(name, "").hint
    return hint if "/" not in name and hint.startswith("did you mean") else otherwise


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def config_of(snapshot: Path) -> dict[str, Any]:
    """The parsed config.json of a directory."""
    return json.loads((snapshot / "config.json").read_text())
