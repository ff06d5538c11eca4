"""What goes wrong on command: NATs that reboot, links that fail, daemons that die. One file a part of the lab."""
