"""Who was given the drink: by which heads does the name come to the last token, and what do those against it do?"""
