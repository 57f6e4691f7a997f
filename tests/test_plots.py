"""Pictures as files: every kind is drawn, in the colours of the scales, whatever the texts are."""

from __future__ import annotations

import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probe.errors import BadOption, StorageFull
from probe.reporting import colours
from probe.reporting.plots import figure_of, write_plots
from probe.reporting.scales import scale_of
from probe.reporting.views import Grid, Measure, Scaling, SequenceView, ShownColumn
from tests import panels

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """The name of each file -> the file, of every kind and measure, as PNG and SVG. A letter that no font has is a warning."""
    folder = tmp_path_factory.mktemp("plots")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [write_plots([panels.view()], folder, form, measures=["all"]) for form in ("png", "svg")]
    assert not any(one.left_out for one in found)
    return {path.name: path for one in found for path in one.paths}


def pixels(path: Path) -> np.ndarray:
    """uint8 (height, width, 3)."""
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def test_every_panel_and_measure_has_a_file(written) -> None:
    names = {
        "tokens", "tokens-rank", "tokens-verdict", "lens", "lens-pos", "patterns-layer0-head0", "patterns-layer0-head1",
        "importance", "outcomes", "scan", "tree", "branches",
    }  # fmt: skip
    assert set(written) == {f"{name}.{form}" for name in names for form in ("png", "svg")}


def test_no_picture_is_blank(written) -> None:
    for name, path in written.items():
        if name.endswith(".png"):
            found = pixels(path).astype(float)
            drawn = (found < 250).any(axis=2)
            assert drawn.mean() > 0.02 and found.std() > 15, name
            assert drawn[:, : drawn.shape[1] // 2].any() and drawn[drawn.shape[0] // 2 :].any(), name


def test_svg_files_are_whole_and_hold_nothing_but_shapes(written) -> None:
    """No script, nothing from elsewhere, though tokens are called so."""
    for name, path in written.items():
        if name.endswith(".svg"):
            root = ET.fromstring(path.read_bytes())
            assert root.tag == f"{SVG}svg", name
            assert len(list(root.iter(f"{SVG}path"))) > 5, name
            assert not list(root.iter(f"{SVG}script")), name
            links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
            assert all(link.startswith(("#", "data:")) for link in links), name


def test_cells_have_the_colours_of_the_scale(written) -> None:
    """The grid goes from 3 * 21 below 0 to 2 * 21 above it: of the diverging scale it has the lowest colour."""
    for name, colour in (
        ("lens", colours.DIVERGING[0]),
        ("tokens", colours.SEQUENTIAL[-1]),
        ("tokens-rank", colours.SEQUENTIAL[0]),
        ("tokens-verdict", colours.CLASSES[1]),
        ("patterns-layer0-head0", colours.SEQUENTIAL[-1]),
        ("importance", colours.CLASSES[0]),
        ("outcomes", colours.CLASSES[1]),
        ("tree", colours.CLASSES[2]),
    ):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels(written[f"{name}.png"]) == wanted).all(axis=2).sum() > 100, name
        assert colour in written[f"{name}.svg"].read_text(), name


def test_a_cell_is_where_its_row_and_column_are() -> None:
    """The one cell without a row is blank, and the one without a value is grey: layer 2 above layer 1, position 3 and 1."""
    figure = figure_of(panels.grid())
    (mesh,) = figure.axes[0].collections
    cells = np.asarray(mesh.get_array())
    assert figure.axes[0].get_ylim() == (0, 6)
    assert cells[2, 3, 3] == 0
    np.testing.assert_allclose(cells[1, 1], [0x80 / 255] * 3 + [0x40 / 255])
    lowest = [int(colours.DIVERGING[0][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    np.testing.assert_allclose(cells[0, panels.N - 1, :3], lowest)


def test_a_pattern_has_its_weights_where_they_were() -> None:
    panel = panels.patterns()
    one = panel.frame[panel.frame["head"] == 1]
    figure = figure_of(type(panel)("p", "P", "attention", one))
    cells = np.asarray(figure.axes[0].collections[0].get_array())
    drawn = np.argwhere(cells[..., 3] > 0)
    assert sorted(map(tuple, drawn.tolist())) == [(0, 0), *((q, k) for q in range(1, panels.N) for k in (q - 1, q))]


def test_bars_stand_under_their_tokens_with_their_heights_and_intervals() -> None:
    panel = panels.bars()
    axes = figure_of(panel).axes
    for facet, part in panel.frame.groupby("method", sort=False):
        here = next(a for a in axes if a.get_title(loc="left") == facet)
        bars = [(p.get_x(), p.get_x() + p.get_width(), p.get_height()) for p in here.patches]
        assert bars == list(part[["start", "end", "estimate"]].itertuples(index=False, name=None))
        spans = [(segment[0][1], segment[1][1]) for segment in here.collections[0].get_segments()]
        assert spans == list(part[["low", "high"]].dropna().itertuples(index=False, name=None))


def test_curves_go_through_their_values() -> None:
    panel = panels.lines()
    axes = figure_of(panel).axes[0]
    for line, (_, part) in zip(axes.lines, panel.frame.groupby("direction", sort=False), strict=False):
        np.testing.assert_array_equal(line.get_xydata(), part[["strength", "effect"]].to_numpy())


def test_outcomes_of_a_tree_take_their_shares() -> None:
    axes = figure_of(panels.tree()).axes[0]
    assert [round(p.get_width() / 0.9 * n) for p, n in zip(axes.patches, (16, 16, 16, 8, 8, 8, 8), strict=True)] == [
        6,
        9,
        1,
        6,
        2,
        7,
        1,
    ]


@pytest.mark.parametrize(
    ("scaling", "values", "places"),
    [
        ("sequential", [2.0, 4.0, 6.0, np.nan], [0.0, 0.5, 1.0, np.nan]),
        ("diverging", [-1.0, 0.0, 4.0, np.nan], [0.375, 0.5, 1.0, np.nan]),
        ("log", [0.0, 9.0, 99.0, np.nan], [0.0, 0.5, 1.0, np.nan]),
        ("sequential", [3.0, 3.0], [0.0, 0.0]),
        ("diverging", [0.0, 0.0], [0.5, 0.5]),
        ("sequential", [-np.inf, 0.0, 1.0], [0.0, 0.0, 1.0]),
        ("classes", ["b", "a", None, "b"], [0.0, 1.0, np.nan, 0.0]),
    ],
)
def test_where_values_stand_on_a_scale(scaling: Scaling, values: list, places: list) -> None:
    """Counted by hand."""
    column = pd.Series(values)
    np.testing.assert_allclose(scale_of(Measure("x", "x", scaling=scaling), column).places(column), places)


def test_colours_between_two_steps_are_their_mean() -> None:
    scale = scale_of(Measure("x", "x", low=0.0, high=8.0), pd.Series([1.0]))
    low, high = (np.array([int(one[i : i + 2], 16) for i in (1, 3, 5)]) for one in colours.SEQUENTIAL[2:4])
    assert np.abs(scale.colours([2.25])[0, :3] - (0.75 * low + 0.25 * high)).max() <= 0.5
    assert [f"#{bytes(row[:3]).hex()}" for row in scale.colours(range(9))] == list(colours.SEQUENTIAL)
    assert f"#{bytes(scale.colours([np.nan])[0]).hex()}" == colours.MISSING


def test_of_many_heads_one_is_drawn_and_the_rest_is_named(tmp_path: Path) -> None:
    panel = panels.patterns()
    many = pd.concat([panel.frame.assign(layer=layer) for layer in range(13)])
    view = SequenceView(0, "", (type(panel)("patterns", "P", "attention", many, follows=panel.follows),))
    found = write_plots([view], tmp_path, "png")
    assert [path.name for path in found.paths] == ["patterns-layer0-head0.png"]
    assert found.left_out == ["patterns: 1 of 26 is drawn, of layer 0, head 0; --heads chooses others"]


def test_prompts_are_told_apart_by_name(tmp_path: Path) -> None:
    """What is about all of them is drawn once."""
    means = panels.outcomes()
    views = [SequenceView(i, "", (panels.tree(), means)) for i in (0, 3)]
    assert [path.name for path in write_plots(views, tmp_path, "svg", prefix="b-").paths] == [
        "b-prompt0-tree.svg", "b-outcomes.svg", "b-prompt3-tree.svg",
    ]  # fmt: skip


def test_a_table_has_a_column_once_and_of_more_classes_than_colours_none_looks_like_another(tmp_path: Path) -> None:
    listing = panels.listing()
    columns = (*listing.columns, ShownColumn("text", "text"))
    figure = figure_of(replace(listing, columns=columns))
    assert [text.get_text() for text in figure.axes[0].texts].count("It is 18.") == 1
    bars = figure_of(replace(panels.outcomes(), frame=pd.DataFrame({
        "outcome": ["a"] * 12, "arm": [f"arm {i}" for i in range(12)], "share": 0.5, "low": 0.4, "high": 0.6,
    }))).axes[0].patches  # fmt: skip
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 12


def test_numbers_in_cells_have_as_many_decimals_as_the_largest_needs() -> None:
    axis = panels.Axis("head", "head")
    for values, texts in (([0.123456, -1.0, 1e-9], ["0.12", "-1.00", "0"]), ([3.0, 10.0, 0.0], ["3", "10", "0"])):
        frame = pd.DataFrame({"layer": [0, 1, 2], "head": [0, 0, 0], "x": values})
        grid = Grid("g", "g", "heads", frame, rows=panels.LAYER, columns=axis, measures=(Measure("x", "x"),))
        assert [text.get_text() for text in figure_of(grid).axes[0].texts[:3]] == texts


def test_the_same_picture_is_the_same_file_whatever_the_settings(tmp_path: Path) -> None:
    """A reader's own matplotlibrc neither changes a picture nor is changed."""
    import matplotlib

    view = SequenceView(0, "", (panels.outcomes(), panels.strip()))
    first = [path.read_bytes() for path in write_plots([view], tmp_path / "a", "svg").paths]
    with matplotlib.rc_context({"font.size": 30, "text.usetex": True, "axes.facecolor": "red", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        again = [path.read_bytes() for path in write_plots([view], tmp_path / "b", "svg").paths]
        assert dict(matplotlib.rcParams) == before
    assert again == first


@pytest.mark.slow
def test_pyplot_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests import panels; from probe.reporting.plots import write_plots\n"
        f"write_plots([panels.view()], Path({str(tmp_path)!r}), 'png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_matplotlib_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadOption, match="need the matplotlib package") as error:
        write_plots([panels.view()], tmp_path, "png")
    assert "mechprobe[plot]" in error.value.hint


def test_a_folder_that_cannot_be_written_is_a_stated_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFull, match="cannot write"):
        write_plots([panels.view()], tmp_path / "file", "png")


def test_a_measure_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="no picture of this run has a measure 'entrpy'") as error:
        write_plots([panels.view()], tmp_path, "png", measures=["entrpy"])
    assert "logprob" in error.value.hint
    with pytest.raises(BadOption, match="'tokens' has no measure 'x'"):
        figure_of(panels.strip(), measure="x")


@pytest.mark.slow
def test_a_long_text_is_cut_and_says_so(tmp_path: Path) -> None:
    n = 3000
    frame = pd.DataFrame({"pos": range(n), "token": ["word\n"] * n, "logprob": np.linspace(-1, 0, n)})
    strip = type(panels.strip())("tokens", "T", "tokens", frame, measures=(panels.LOGPROB,))
    figure = figure_of(strip)
    assert any("The first 1,000 of 3,000 tokens." in text.get_text() for text in figure.texts)
