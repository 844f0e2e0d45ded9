"""Notebooks: made anew by ``python -m docs.generate.notebooks``, shown on the site with the outputs that they keep."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
Pages = dict[str, str | bytes]


def pages() -> Pages:
    """``notebooks/*.md`` and their pictures."""
    found: Pages = {}
    for path in sorted(FOLDER.glob("*.ipynb")):
        found |= _page(path)
    return found


def executed(path: Path) -> Any:
    """The notebook with the outputs of a fresh run, in a folder that is forgotten.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=300, resources=place, coalesce_streams=True).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def _page(path: Path) -> Pages:
    notebook, pictures, parts = nbformat.read(path, as_version=4), Pages(), []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            parts.append(_output(output, f"{path.stem}-{len(pictures)}.png", pictures))
    parts.insert(1, f"*This page is the notebook `docs/notebooks/{path.name}`.*")
    return {f"notebooks/{path.stem}.md": "\n\n".join(parts) + "\n", **pictures}


def _output(output: Any, name: str, pictures: Pages) -> str:
    """Text as it is; a picture becomes a file of that name."""
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```"
    if "image/png" in output.data:
        pictures[f"notebooks/{name}"] = base64.b64decode(output.data["image/png"])
        return f"![what the cell above draws]({name})"
    return f"```text\n{output.data['text/plain']}\n```"


if __name__ == "__main__":
    for each in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(each), each)
