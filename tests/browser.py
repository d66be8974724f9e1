"""Open a page in Qt's Chromium without a screen, and print what a script finds there as JSON.

    python browser.py PAGE SCRIPT [PICTURE.png]

Printed: {"loaded": whether the page loaded, "found": the script's value, "console": messages,
"requested": addresses other than the page's own that were asked for}.
"""

import json
import os
import sys
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
# no sandbox inside containers, no graphics card, no network
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--no-sandbox --disable-gpu"

from PyQt6.QtCore import QTimer, QUrl
from PyQt6.QtWebEngineCore import (
    QWebEnginePage,
    QWebEngineSettings,
    QWebEngineUrlRequestInterceptor,
)
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

_SETTLE = 1500  # milliseconds for scripts of the page


class Watched(QWebEnginePage):
    """A page that keeps what its scripts say."""

    said: list[str]

    def javaScriptConsoleMessage(self, level, message, line, source):
        self.said.append(message)


class Requests(QWebEngineUrlRequestInterceptor):
    """Every address asked for; none but the page's own is let through."""

    def __init__(self, page: str):
        super().__init__()
        self.page, self.asked = page, []

    def interceptRequest(self, info):
        address = info.requestUrl().toString()
        if info.requestUrl().scheme() not in ("data", "blob") and address != self.page:
            self.asked.append(address)
            info.block(True)


def main() -> None:
    path, script = sys.argv[1:3]
    app = QApplication(sys.argv[:1])
    url = QUrl.fromLocalFile(str(Path(path).resolve()))
    view, page = QWebEngineView(), Watched()
    page.said = []
    requests = Requests(url.toString())
    page.profile().setUrlRequestInterceptor(requests)
    view.setPage(page)
    # else a file's requests would be refused before anyone sees them
    remote = QWebEngineSettings.WebAttribute.LocalContentCanAccessRemoteUrls
    page.settings().setAttribute(remote, True)
    view.resize(1200, 1600)
    answer = {}

    def finish(found):
        answer["found"] = found
        if len(sys.argv) > 3:
            view.grab().save(sys.argv[3])
        app.quit()

    def loaded(ok):
        answer["loaded"] = ok
        QTimer.singleShot(_SETTLE, lambda: page.runJavaScript(script, finish))

    page.loadFinished.connect(loaded)
    view.show()
    page.load(url)
    QTimer.singleShot(60_000, app.quit)
    app.exec()
    print(json.dumps(answer | {"console": page.said, "requested": requests.asked}), flush=True)
    os._exit(0)  # Qt's own tidying up is not what is tested


if __name__ == "__main__":
    main()
