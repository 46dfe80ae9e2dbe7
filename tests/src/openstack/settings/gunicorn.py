# One process for each service: the databases of two of them are single files.
import sys

worker_class = "gthread"
workers = 1
threads = 8
timeout = 600
keepalive = 75
control_socket_disable = True


def post_fork(server, worker):
    # The services read options of their own from the command line.
    sys.argv = ["wsgi"]
