"""``stillhouse open``: write a folder's report if need be, and show it in the browser."""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from pathlib import Path

from rich.console import Console

from stillhouse.report.folder import fresh_page
from stillhouse.report.serve import ReportServer


def open_folder(folder: Path, *, port: int, browser: bool) -> None:
    """Serve ``folder`` on loopback until Ctrl-C; ``port`` 0 takes a free one."""
    page = fresh_page(folder)
    console = Console()
    with ReportServer(folder, port, fresh_page) as server:
        console.print(f"{page}\n{server.url}\nCtrl-C ends it", markup=False, highlight=False, soft_wrap=True)
        if browser:
            # A text browser in this terminal would wait for its user before the server answers.
            threading.Thread(target=_show, args=(server.url,), daemon=True).start()
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("closed", markup=False, highlight=False)
        finally:
            signal.signal(signal.SIGTERM, previous)


def _show(url: str) -> None:
    """Open a graphical browser; without a screen the printed address has to do."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    webbrowser.open(url)
