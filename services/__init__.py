"""What stands between the loop and the services it speaks to: keys, places, faults, outbox."""
