"""Writes where the services are into a copied database of Keystone. Arguments: the database, then TYPE=URL of each service
that runs. The others are taken out of the catalogue."""

import sqlite3
import sys

urls = dict(word.split("=", 1) for word in sys.argv[2:])
database = sqlite3.connect(sys.argv[1])
for service, kind in database.execute("SELECT id, type FROM service").fetchall():
    if kind in urls:
        database.execute("UPDATE endpoint SET url = ? WHERE service_id = ?", (urls[kind], service))
    else:
        database.execute("DELETE FROM endpoint WHERE service_id = ?", (service,))
        database.execute("DELETE FROM service WHERE id = ?", (service,))
database.commit()
