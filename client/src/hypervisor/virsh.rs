//! libvirt, through its own command line.
