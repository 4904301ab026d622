/* Values that are short and that nobody can change, in pickle's format (protocol 5) but without its machinery: either side may use pickle for the
 * same bytes. */
#ifndef IPC_SCALARS_H
#define IPC_SCALARS_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#define SCALAR_MOST 260u /* bytes that scalar_encode writes at most */

int scalar_encode(PyObject *value, unsigned char *to); /* how many bytes; 0: it is none of these. Never raises */
PyObject *scalar_decode(const unsigned char *data, uint64_t length); /* new reference; NULL without an exception: it is none of these */
int scalar_is_fixed(PyObject *item); /* nobody can change it: a number, a string, bytes, None, or a tuple of these */

#endif
