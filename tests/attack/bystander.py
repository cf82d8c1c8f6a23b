"""The other key: it repeats its requests before and during an attack, and records how long each took."""

import statistics
import threading
import time

from attack.installation import MODEL

SMALL = {
    "prompt": "a red house beside a tree",
    "size": "512*512",
    "num_inference_steps": 4,
    "enable_sync_mode": True,
    "enable_base64_output": False,
}


def small_image(http):
    """Draw a small image, and wait for it."""
    answer = http.post(f"/api/v3/{MODEL}", json=SMALL)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"]["status"] == "completed", answer.text


def balance(http):
    """Ask for what takes neither the database nor the worker."""
    assert http.get("/api/v3/balance").status_code == 200


class Bystander(threading.Thread):
    """`with Bystander(site, act) as other`: acts until the block ends; `seconds` of each time, `errors` in words."""

    def __init__(self, site, act, pause_s=0.05):
        super().__init__(daemon=True)
        self._site, self._act, self._pause_s = site, act, pause_s
        self._over = threading.Event()
        self.seconds, self.errors = [], []

    def run(self):
        """Act again and again."""
        with self._site.client(self._site.bystander) as http:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    self._act(http)
                except Exception as error:  # whatever it is, the attack has reached somebody else
                    self.errors.append(f"{type(error).__name__}: {error}")
                self.seconds.append(time.monotonic() - began)
                self._over.wait(self._pause_s)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join(150)

    def wait_for(self, times):
        """Wait until it has acted so many times."""
        deadline = time.monotonic() + 150
        while len(self.seconds) < times and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(self.seconds) >= times, "the bystander waits for ever"

    @property
    def p95_s(self):
        """Of 20 times, 19 took no longer."""
        return statistics.quantiles(self.seconds, n=20, method="inclusive")[-1]


def quiet_p95_s(site, act, times):
    """Act so many times while nobody attacks."""
    with Bystander(site, act) as other:
        other.wait_for(times)
    assert not other.errors, other.errors
    return other.p95_s
