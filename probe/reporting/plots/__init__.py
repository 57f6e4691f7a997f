"""Pictures of a run as PNG and SVG files for a paper, drawn by matplotlib in the colours of the page; no browser, no pyplot."""

from probe.reporting.plots.files import PlotFiles, figure_of, write_plots

__all__ = ["PlotFiles", "figure_of", "write_plots"]
