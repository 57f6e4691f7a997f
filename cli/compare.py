"""`probe compare`: two models on one text, or two runs; one library verb."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from probe.requests import Compare, Option, Progress

from .command import Begun, with_options
from .groups import Planning, PromptSource, Showing, Weights


@dataclass(frozen=True, kw_only=True)
class Sides(Weights):
    """The two models or runs, and what is another of B than of A."""

    a: Annotated[str, Option("A model (as for --model), or a run directory.", argument=True, metavar="A", complete="models")]
    b: Annotated[str, Option("The other model, or the other run.", argument=True, metavar="B", complete="models")]
    dtype_b: Annotated[str | None, Option("B's, where it is another than --dtype.")] = None
    adapter_b: Annotated[str | None, Option("An adapter of B's: A may be the same model without.")] = None
    weights_patch_b: Annotated[
        tuple[str, ...], Option("A file of edited weights of B's: A may be the same model without.", shell=list[str] | None)
    ] = ()
    quantize_b: Annotated[
        str | None, Option("How B is quantised on loading: A may be the same model without.", complete="quantizations")
    ] = None
    revision_b: Annotated[str | None, Option("B's, where it is another than --revision.")] = None

    def load(self, runs: tuple[bool, bool], report: Progress | None) -> list[Any]:
        """Both, each loaded or opened once."""
        import probe
        from probe.errors import BadOption

        put_on = (
            self.quantize, self.quantize_b, self.adapter, self.adapter_b, self.weights_patch or None,
            self.weights_patch_b or None,
        )  # fmt: skip
        if any(runs) and any(one is not None for one in put_on):
            raise BadOption(
                "a run is what its model was when it was made", hint="adapters, patches and --quantize are for comparing models"
            )
        own = {f"{name}_b" for name in ("dtype", "adapter", "revision", "weights_patch", "quantize")} | {"a", "b"}
        a = {key: value for key, value in vars(self).items() if key not in own}
        b = {**a, "adapter": self.adapter_b, "dtype": self.dtype_b or self.dtype}
        b["quantize"] = self.quantize_b
        b["weights_patch"] = self.weights_patch_b
        b["revision"] = self.revision_b or self.revision
        sides: list[Any] = []
        for name, is_run, weights in zip((self.a, self.b), runs, (a, b), strict=True):
            if sides and name == self.a and weights == a:
                sides.append(sides[0])
            else:
                sides.append(probe.open_run(name) if is_run else probe.load(name, **weights, progress=report))
        return sides


@with_options
def command(begun: Begun[Compare], sides: Sides, source: PromptSource, planning: Planning, showing: Showing) -> None:
    """Compare two models on one text (or two runs): KL both ways, total variation, agreement, where they part."""
    from probe.store import names_run

    runs = names_run(sides.a), names_run(sides.b)
    bare = any(runs) and source.prompt is None and source.file is None
    texts = None if bare else source.prompts(begun.said)
    from probe.comparing import plan_compare, run_compare

    from .differences import show_comparison
    from .terminal import end_with_failed, show_plan, show_run

    with showing.progress() as report:
        a, b = sides.load(runs, report)
        request = begun.build(a=a, b=b, texts=texts)
        request = replace(request, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_compare(request), as_json=showing.as_json)
            return
        run = run_compare(request)
    show_run(run, "compare", showing, show_comparison)
    end_with_failed(run, "texts could not be compared")
