"""Parts."""


def markers(profile, notebook, model):
    return []
