"""Text that may offend, shown only when the reader opens it; works in JupyterLab, in exported pages and by keyboard."""

import html

import pandas as pd
from IPython.display import HTML


def table(frame: pd.DataFrame, summary: str) -> HTML:
    """Return a table closed behind a line of text; all cells are escaped."""
    body = frame.to_html(index=False, escape=True, border=0)
    return HTML(f"<details><summary>{html.escape(summary)}</summary>{body}</details>")  # type: ignore[no-untyped-call]
