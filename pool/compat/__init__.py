"""The pool behind the interfaces of others: code that was written for them changes one line.

============================== ====================================================================
``pool.compat.multiprocessing`` ``Pool``, in the place of ``multiprocessing.Pool``
``pool.compat.joblib``          ``register()``, then ``parallel_config("pool")``; so scikit-learn too
``pool.compat.tqdm``            ``process_map``, in the place of ``tqdm.contrib.concurrent``'s
============================== ====================================================================

dask, asyncio and ``rich.progress.track`` take ``pool.Pool`` as it is. See docs/adapters.md.
"""
