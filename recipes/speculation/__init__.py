"""Which tokens of a model does a cheap draft have right, and does drafting pay?"""
