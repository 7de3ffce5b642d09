"""A real Chromium for tests, driven over its DevTools protocol: one tab, its console, its keys and its pictures."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import websocket

ERRORS = ("error", "assert")


class Page:
    """One tab. ``errors`` collects what its console, its scripts and its requests complain of."""

    def __init__(self, address):
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.count = 0
        self.errors = []
        self.requests = []
        self.loaded = False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]
            self.notice(message.get("method"), message.get("params", {}))

    def notice(self, method, event):
        if method == "Runtime.consoleAPICalled" and event["type"] in ERRORS:
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in event["args"]))
        elif method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.errors.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(self, url):
        self.loaded = False
        self.call("Page.navigate", url=url)
        self.until(lambda: self.loaded, f"{url} was not loaded")
        self.run("new Promise(done => setTimeout(done, 50))")  # scripts that wait for the load event

    def run(self, script):
        """The value of a script's last expression; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, condition, message, seconds=60):
        """Wait until a function or a script is true; events go on being read."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            met = self.run(condition) if isinstance(condition, str) else condition() or (self.run("0") and False)
            if met:
                return
            time.sleep(0.05)
        raise AssertionError(message)

    def press(self, key, code, **more):
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text, **more
            )

    def tab(self):
        self.press("Tab", 9)

    def enter(self):
        self.press("Enter", 13)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def size(self, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def scheme(self, name):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def picture(self, path):
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def chromium():
    """Start a headless Chromium and hand out its one tab; skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}", "--disable-gpu"]
        options += ["--no-first-run", "--disable-dev-shm-usage", "--disable-background-networking"]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        process = subprocess.Popen(
            [program, *options, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            port = Path(folder) / "DevToolsActivePort"
            end = time.monotonic() + 60
            while not (port.exists() and port.read_text().count("\n")):
                assert process.poll() is None, "chromium ended at once"
                assert time.monotonic() < end, "chromium did not start"
                time.sleep(0.1)
            listing = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
            tabs = []
            while not tabs:
                with urllib.request.urlopen(listing) as answer:
                    tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            page = Page(tabs[0]["webSocketDebuggerUrl"])
            yield page
            page.socket.close()
        finally:
            process.terminate()
            process.wait(timeout=30)
