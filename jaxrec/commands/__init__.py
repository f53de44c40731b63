"""One file a command of the `jaxrec` program: each has `main(words) -> exit code`."""
