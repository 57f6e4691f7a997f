"""Does the answer need the reasoning, and is a wrong number in it repaired?"""
