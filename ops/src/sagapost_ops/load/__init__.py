"""An open-loop load of checkouts through the gateway, as careful customers make them."""
