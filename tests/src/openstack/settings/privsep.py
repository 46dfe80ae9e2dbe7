# The part of nova-compute that changes the system.
from oslo_privsep.daemon import helper_main

helper_main()
