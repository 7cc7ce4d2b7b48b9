"""Seeds or fetches one torrent with libtorrent, for the lab of `cargo xtask bench`.

usage: libtorrent.py seed|fetch TORRENT DIRECTORY ADDRESS

seed   prints `seeding` when the copy in DIRECTORY is checked.
fetch  makes DIRECTORY/ready, waits until the file that the environment's GO names is there, then
       fetches; makes DIRECTORY/first with the first piece and DIRECTORY/complete with the last.

Both go on serving until SIGTERM.
"""

import os
import signal
import sys
import time

import libtorrent as lt

mode, torrent, directory, address = sys.argv[1:]

ended = False


def end(_signal, _frame):
    global ended
    ended = True


signal.signal(signal.SIGTERM, end)

PIECES = lt.alert.category_t.piece_progress_notification
STATUS = lt.alert.category_t.status_notification | lt.alert.category_t.error_notification

session = lt.session(
    {
        "listen_interfaces": f"{address}:6881",
        "alert_mask": STATUS | (PIECES if mode == "fetch" else 0),
        # The tracker knows all; looking elsewhere is of no use in a lab.
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        # uTP steps back from queues, which a shaped link always has: it would only be slower.
        "enable_outgoing_utp": False,
        "enable_incoming_utp": False,
        # Do not wait for the tracker when it is over.
        "stop_tracker_timeout": 1,
    }
)


def touch(name):
    with open(os.path.join(directory, name), "x", encoding="ascii"):
        pass


def fail(text):
    print(text, flush=True)
    sys.exit(1)


if mode == "fetch":
    touch("ready")
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.002)

handle = session.add_torrent({"ti": lt.torrent_info(torrent), "save_path": directory})

seen_first = seen_all = False
while not ended:
    session.wait_for_alert(100)
    for alert in session.pop_alerts():
        if isinstance(alert, (lt.torrent_error_alert, lt.file_error_alert, lt.listen_failed_alert)):
            fail(alert.message())
        if isinstance(alert, lt.piece_finished_alert) and mode == "fetch" and not seen_first:
            seen_first = True
            touch("first")
            session.apply_settings({"alert_mask": STATUS})
        if isinstance(alert, lt.torrent_finished_alert) and not seen_all:
            seen_all = True
            if mode == "fetch":
                touch("complete")
            else:
                print("seeding", flush=True)
