"""How many pairs does an attention head hold when it is read as a memory of fixed size?"""
