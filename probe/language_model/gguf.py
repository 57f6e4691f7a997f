"""GGUF files: checked, unpacked by transformers, converted once to safetensors with the same logits. Knows no names."""

from __future__ import annotations

import copy
import math
import shutil
import struct
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from probe.errors import BadModel
from probe.language_model.checkpoint import Checkpoint, check_all_there, check_all_used, refusals
from probe.language_model.hashes import hashes_of, made, remembered
from probe.language_model.home import Progress, building, models_dir
from probe.language_model.rotary import FACTORS, check_factors, scale

if TYPE_CHECKING:
    import torch
    from gguf import GGMLQuantizationType

SOURCE = "source.gguf"  # in a converted folder: the file that it was made from
# unpacked bytes up to which a user's file is worth a converted copy; larger ones are unpacked at every load
CONVERT_UP_TO = 4e9
# values of tokenizer.ggml.pre whose rule in llama.cpp is: every digit apart, the rest as GPT-2 splits it.
# transformers 5.23 does not know these and leaves out the first half, which joins spaces differently next to digits
DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}


class Header:
    """What a GGUF file says about itself. Raises `BadModel` if it is not a whole one that can be read."""

    def __init__(self, path: Path) -> None:
        from gguf import GGMLQuantizationType
        from transformers.integrations.gguf.reader import read_gguf_metadata

        try:
            self.metadata: dict[str, Any] = read_gguf_metadata(str(path))[0]
            tensors = _tensors(path)
            kinds = [GGMLQuantizationType(tensor.kind) for tensor in tensors]
        except (ValueError, struct.error, KeyError, IndexError, UnicodeDecodeError, OverflowError, OSError) as error:
            why = str(error).replace(f"{path} ", "")
            raise BadModel(f"'{path}' is not a readable GGUF file: {why}", hint="copy or download it again") from error
        end = max((tensor.end for tensor in tensors), default=0)
        if not tensors or end > path.stat().st_size:
            raise BadModel(
                f"'{path}' is not a whole GGUF file: its tensors end at byte {end:,} of {path.stat().st_size:,}",
                hint="copy or download it again",
            )
        self.names = [tensor.name for tensor in tensors]
        numbers = Counter[str]()
        for tensor, kind in zip(tensors, kinds, strict=True):
            numbers[kind.name] += tensor.values
        self.parameters = numbers.total()
        self.quantisation = f"gguf {'+'.join(kind for kind, _ in numbers.most_common())}, dequantised"
        for kind in sorted(set(kinds)):
            _check_unpacks(path, kind)


class Stored(NamedTuple):
    """A tensor of a file: its type as a number, how many values it has, where its bytes end."""

    name: str
    kind: int
    values: int
    end: int


def _tensors(path: Path) -> list[Stored]:
    """By transformers' reader, which is quick and knows fewer types, else by the `gguf` package's."""
    from gguf import GGUFReader
    from transformers.integrations.gguf.reader import GgufHeader

    try:
        header = GgufHeader.from_file(str(path))
    except ValueError as error:
        if "ggml type" not in str(error):
            raise
        return [
            Stored(t.name, int(t.tensor_type), int(t.n_elements), int(t.data_offset + t.n_bytes))
            for t in GGUFReader(path).tensors
        ]
    start = header.data_start
    return [Stored(t.name, t.ggml_type, math.prod(t.shape), start + t.offset + t.nbytes) for t in header.tensors]


def _check_unpacks(path: Path, kind: GGMLQuantizationType) -> None:
    """`BadModel` for a type of tensor that the `gguf` package has no code for."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8).view(plain.get(kind, np.uint8)), kind)
    except NotImplementedError as error:
        raise BadModel(
            f"'{path}' holds tensors of type {kind.name}, which nothing here can unpack",
            hint="use a file of another quantisation, or the safetensors checkpoint",
        ) from error


def obtain(name: str, path: Path, *, progress: Progress | None = None) -> Checkpoint:
    """The checkpoint of a user's file: a converted copy, made now if need be, or the file itself if it is large."""
    header = Header(path)
    if header.parameters * 4 > CONVERT_UP_TO:
        return Checkpoint(name, path.parent, "gguf", quantisation=header.quantisation, gguf=path)
    digest = remembered([path], progress=progress)[path.name]
    target = models_dir() / f"{path.stem}-{digest[:12]}"
    facts = {"source": str(path), "sha256": digest}
    made(target, lambda: convert(path, target, facts, progress=progress), progress)
    return Checkpoint(name, target, "gguf", revision=digest, quantisation=header.quantisation)


def convert(path: Path, target: Path, record: dict[str, Any], *, keep: bool = False, progress: Progress | None = None) -> None:
    """Write `path` to the folder `target` as float32 safetensors with its tokenizer; `keep` moves the file in too.

    The caller has claimed `target`. Nothing is at `target` until all of it is.
    """
    import torch

    header = Header(path)
    facts = {**record, "quantisation": header.quantisation}
    with building(target, facts, needs=int(header.parameters * 4.2 + 50e6), describe=hashes_of) as part:
        model, tokenizer = load(path, dtype=torch.float32, progress=progress)
        if progress:
            progress(f"writing {target.name}", 0, 1)
        _plain(model).save_pretrained(part)
        tokenizer.save_pretrained(part)
        if keep:
            shutil.move(path, part / SOURCE)
    if progress:
        progress(f"writing {target.name}", 1, 1)


def load(path: Path, *, dtype: torch.dtype | str, progress: Progress | None = None, **options: Any) -> tuple[Any, Any]:
    """(model, tokenizer) of a GGUF file, all weights unpacked to `dtype`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    where = {"gguf_file": path.name, "local_files_only": True}
    loader: Any = AutoModelForCausalLM
    header = Header(path)
    with refusals(str(path)), _unpacking(path, progress), _apart(path) as folder:
        config = AutoConfig.from_pretrained(folder, **where)
        factors = _factors(Path(folder) / path.name) if FACTORS & set(header.names) else {}
        scale(str(path), config, header.metadata, factors)
        model, report = loader.from_pretrained(
            folder, **where, config=config, dtype=dtype, quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True, **options,
        )  # fmt: skip
        check_all_there(str(path), report["missing_keys"])
        check_all_used(str(path), [*report["unexpected_keys"], *_unused(model, header)], {}, lambda _: None)
        check_factors(str(path), model, factors)
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    _split_as_llama_cpp(tokenizer, header.metadata)
    return model, tokenizer


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a GGUF file, without its weights."""
    from transformers import AutoTokenizer

    with refusals(str(path)), _apart(path) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=path.name, local_files_only=True)
    _split_as_llama_cpp(tokenizer, Header(path).metadata)
    return tokenizer


def _factors(path: Path) -> dict[str, list[float]]:
    """The tensors of FACTORS that a file holds: by what each rotary frequency is divided."""
    import gguf

    tensors = [tensor for tensor in gguf.GGUFReader(str(path)).tensors if tensor.name in FACTORS]
    return {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).flatten().tolist() for tensor in tensors}


def _unused(model: Any, header: Header) -> list[str]:
    """The tensors of the file that transformers leaves out without a word, where it reads files in its older way."""
    from transformers import modeling_gguf_pytorch_utils as unpacker
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    family = header.metadata["general.architecture"]
    if is_gguf_arch_supported(family):
        return []
    processor = unpacker.TENSOR_PROCESSORS.get(family, unpacker.TensorProcessor)(config=model.config.to_dict())
    known = unpacker.get_gguf_hf_weights_map(model, processor)
    elsewhere = FACTORS | {name for name in header.names if "attn_rot_embd" in name or ".nextn." in name}
    return [n for n in header.names if n not in elsewhere and not {n, n.removesuffix(".weight")} & known.keys()]


@contextmanager
def _apart(path: Path) -> Iterator[str]:
    """A folder in which the file is alone: transformers would also read a tokenizer.json or config that lies beside it."""
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        try:
            (Path(folder) / path.name).symlink_to(path.absolute())
        except OSError:  # Windows lets not everybody make links
            yield str(path.parent)
            return
        yield folder


def _split_as_llama_cpp(tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Give the tokenizer the splitting rule that the file names, where transformers leaves it out."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    rule = metadata.get("tokenizer.ggml.pre", "default")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or rule in GGUF_PRE_TOKENIZER_SPLITS:
        return
    if rule in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif rule not in {"default", "gpt-2", "gpt2", "olmo", "mpt", "jais", "phi-2"}:
        warnings.warn(
            f"transformers does not know the file's splitting rule '{rule}': with GPT-2's, tokens may differ", stacklevel=2
        )


def _plain(model: Any) -> Any:
    """A model of the same class and weights that was not loaded from GGUF: transformers refuses to save such."""
    import torch

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


@contextmanager
def _unpacking(path: Path, progress: Progress | None) -> Iterator[None]:
    """Report transformers' steps, for which it draws a bar whatever its settings say, and spare it repeated work.

    It parses the header three times and builds the table of tensor names once for each module: half a minute for
    SmolLM2, most of it the same again.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as unpacker

    def stepping(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        tensors = list(tensors)
        for i, tensor in enumerate(tensors):
            if progress:
                progress(f"unpacking {path.name}", i, len(tensors))
            yield tensor

    kept: list[tuple[Any, str, Any]] = [(unpacker, "tqdm", stepping)]
    kept += [(gguf, name, cache(getattr(gguf, name))) for name in ("GGUFReader", "get_tensor_name_map")]
    before = [(module, name, getattr(module, name)) for module, name, _ in kept]
    try:
        for module, name, value in kept:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
    if progress:
        progress(f"unpacking {path.name}", 1, 1)
