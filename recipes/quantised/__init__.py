"""How far do four bits, eight and bfloat16 move a model, and does what a rewind said of it still hold?"""
