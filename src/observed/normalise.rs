//! Makes two reports of the same thing equal, whatever kernel or data plane they come from.
