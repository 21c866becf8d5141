//! Random filters, masks, accesses and replies on two engines; the traces must be equal.
