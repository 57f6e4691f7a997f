"""The colour scales of all pictures, safe for colour-blind readers (page, terminal and files take them from here)."""

from __future__ import annotations

# from least to most: cividis (Nunez, Anderton, Renslow 2018), nine steps
SEQUENTIAL = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#fee838")
# from -1 to 1, 0 in the middle: blue, white, orange-red (ColorBrewer's RdBu, turned round)
DIVERGING = ("#053061", "#2166ac", "#4393c3", "#92c5de", "#f7f7f7", "#f4a582", "#d6604d", "#b2182b", "#67001f")
# classes without an order (Okabe, Ito 2008)
CLASSES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
MISSING = "#80808040"
