"""The table of the chart's values in its README, made from values.yaml. `values_table.py --write` puts it there."""

import json
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "weft"
BEGIN, END = "<!-- values -->\n", "<!-- /values -->\n"


def table(path):
    """A row for each value: name, default, and the comment `# --` above it."""
    root = yaml.compose(path.read_text())
    lines = path.read_text().splitlines()
    rows = ["| value | default | |", "|---|---|---|"]

    def comment(node):
        above = lines[node.start_mark.line - 1].strip() if node.start_mark.line else ""
        return above.removeprefix("# --").strip() if above.startswith("# --") else ""

    def walk(mapping, prefix):
        for key, value in mapping.value:
            name = f"{prefix}{key.value}"
            # A mapping in braces, or one that is commented as a whole, is a value of its own.
            is_section = isinstance(value, yaml.MappingNode) and value.value and not value.flow_style
            if is_section and not comment(key) and key.value != "resources":
                walk(value, f"{name}.")
            else:
                default = json.dumps(yaml.safe_load(yaml.serialize(value)))
                rows.append(f"| `{name}` | `{default}` | {comment(key)} |")

    walk(root, "")
    return "\n".join(rows) + "\n"


def write():
    readme = CHART / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + table(CHART / "values.yaml") + END + rest.split(END)[1])


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    write()
