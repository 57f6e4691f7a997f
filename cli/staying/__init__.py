"""A process that has imported and loaded everything, and forks a child for each command that asks; what finds it.

Why a fork for each command, and not the server itself with the client's directory, environment and streams: a command leaves
its process as it likes (warnings that were shown, threads, hooks, weights, a crash), so that only one that is thrown away
afterwards is sure to behave as one that began from nothing; two commands run beside each other as they do without a server;
and a fork that shares 540 MB of weights takes milliseconds. Measured on SmolLM2, in seconds of CPU of a short `probe trace`:
6.2 from nothing, 0.34 in a fork, as much in the server itself. A fork keeps only the thread that forks, and OpenMP's are
those of the thread that began them: the server loads and warms up in a thread that has ended, so that its children, who
never saw a parallel region, begin their own.
"""
