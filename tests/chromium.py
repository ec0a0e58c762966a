"""A headless Chromium that a test starts and drives through its debugging pipe. No network, no further package."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

PATH = shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-sync --disable-component-update --remote-debugging-pipe --window-size=1280,900"
).split()
SECONDS = 60  # a busy machine starts a browser slowly


class Chromium:
    """One page of a browser.

    Attributes:
      errors: texts of exceptions and of errors in the console, also of refused requests.
      requests: URLs that the page has asked for.
    """

    def __init__(self, folder):
        (read, self._out), (self._in, write) = os.pipe(), os.pipe()
        command = [PATH, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        shell = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", *command]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(shell, pass_fds=(read, write), **quiet)
        os.close(read)
        os.close(write)
        self._buffer, self._session, self._count = b"", None, 0
        self.errors, self.requests, self._events = [], [], []
        (target,) = [t for t in self._send("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attach = {"targetId": target["targetId"], "flatten": True}
        self._session = self._send("Target.attachToTarget", **attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def open(self, path):
        """Open a file, and wait until its scripts have run and it is drawn."""
        self._events.clear()
        self._send("Page.navigate", url=f"file://{path}")
        while "Page.loadEventFired" not in self._events:
            self._read()
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")

    def cpu_seconds(self):
        """The CPU time of all processes of the browser so far. It is about the same on a busy machine."""
        parents, ticks = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # a process may end meanwhile
                pid, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
                parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
        own = {self._process.pid}
        while more := {pid for pid, parent in parents.items() if parent in own} - own:
            own |= more
        return sum(ticks.get(pid, 0) for pid in own) / os.sysconf("SC_CLK_TCK")

    def run(self, expression):
        """The value of an expression of JavaScript; a promise is awaited."""
        answer = self._send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition):
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(condition)):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.02)
        return value

    def point(self, selector, click=False):
        """Move the mouse onto the first element of a selector that is there; click on it."""
        box = self.run(f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: "center", inline: "center", behavior: "instant"}});
            const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + Math.min(b.height / 2, 12)]; }})()""")
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            button = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self._send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], **button)

    def press(self, key):
        """Press a key, such as "Tab" or "ArrowRight"."""
        for kind in ("keyDown", "keyUp"):
            code = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key]
            self._send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def show_as(self, width, dark=False):
        """Change the width of the window and the colour scheme. Nothing moves by itself."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self._send("Emulation.setDeviceMetricsOverride", **size)
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in features.items()]
        self._send("Emulation.setEmulatedMedia", features=features)

    def _send(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self):
        while b"\0" not in self._buffer:
            assert select.select([self._in], [], [], SECONDS)[0], "Chromium does not answer"
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "Chromium has ended"
            self._buffer += chunk
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        params = message.get("params", {})
        self._events.append(message.get("method"))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(json.dumps(params["args"]))
        return message
