"""The manual: a page a command and a page a subject, in part generated from the declarations."""
