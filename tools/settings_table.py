"""Writes the table of flags in README.md from the settings in kongps.settings."""

from __future__ import annotations

from pathlib import Path

from kongps.settings import SETTINGS, Setting

PAGE = Path(__file__).parents[1] / "README.md"

BEGIN = "<!-- Made by `make docs` from kongps.settings; change it there. -->\n"
END = "<!-- The end of what `make docs` makes. -->\n"

# What has no default because it has to be given.
REQUIRED = ("plugins_directory", "socket")


def render() -> str:
    """The README with the table as the settings are now."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = [_row(setting) for setting in SETTINGS.values() if setting.flag]
    head = ["| flag | meaning | default |", "| --- | --- | --- |"]
    return "\n".join([f"{before}{BEGIN}", *head, *rows, f"\n{END}{after}"])


def _row(setting: Setting) -> str:
    flag = f"`{setting.flag_name}`"
    if setting.unit.negatable:
        flag = f"{flag}, `--no-{setting.flag_name[2:]}`"
    elif setting.unit.metavar:
        metavar = setting.unit.metavar.replace("|", r"\|")
        flag = f"`{setting.flag_name} {metavar}`"
    default = "required" if setting.name in REQUIRED else setting.default_text or "off"
    return f"| {flag} | {setting.help} | {default} |"


if __name__ == "__main__":
    PAGE.write_text(render())
