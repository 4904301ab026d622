#include "scalars.h"

#include <string.h>

#define SHORT 255
#define PROTOCOL 5

static unsigned char *put(unsigned char *at, char op, const void *bytes, size_t count) {
    *at++ = (unsigned char)op;
    memcpy(at, bytes, count);
    return at + count;
}

/* Little-endian, in as few bytes as pickle takes. */
static unsigned char *put_int(unsigned char *at, long long n) {
    unsigned char le[8];
    for (int k = 0; k < 8; k++) le[k] = (unsigned char)((unsigned long long)n >> 8 * k);
    if (n >= 0 && n < 256) return put(at, 'K', le, 1);
    if (n >= 0 && n < 65536) return put(at, 'M', le, 2);
    if (n >= INT32_MIN && n <= INT32_MAX) return put(at, 'J', le, 4);
    *at++ = 0x8a;
    return put(at, 8, le, 8);
}

static unsigned char *put_text(unsigned char *at, char op, const char *text, Py_ssize_t length) {
    *at++ = (unsigned char)op;
    return put(at, (char)(unsigned char)length, text, (size_t)length);
}

int scalar_encode(PyObject *value, unsigned char *to) {
    unsigned char *at = to;
    *at++ = 0x80;
    *at++ = PROTOCOL;
    if (value == Py_None) {
        *at++ = 'N';
    } else if (value == Py_True || value == Py_False) {
        *at++ = value == Py_True ? 0x88 : 0x89;
    } else if (PyLong_CheckExact(value)) {
        int overflow;
        long long n = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow) return 0;
        at = put_int(at, n);
    } else if (PyFloat_CheckExact(value)) {
        double x = PyFloat_AsDouble(value);
        uint64_t bits;
        unsigned char be[8];
        memcpy(&bits, &x, 8);
        for (int k = 0; k < 8; k++) be[k] = (unsigned char)(bits >> (56 - 8 * k));
        at = put(at, 'G', be, 8);
    } else if (PyUnicode_CheckExact(value)) {
        if (PyUnicode_GetLength(value) > SHORT) return 0;
        Py_ssize_t length;
        const char *text = PyUnicode_AsUTF8AndSize(value, &length);
        if (!text) PyErr_Clear(); /* lone surrogates */
        if (!text || length > SHORT) return 0;
        at = put_text(at, (char)0x8c, text, length);
    } else if (PyBytes_CheckExact(value)) {
        Py_ssize_t length = PyBytes_Size(value);
        if (length > SHORT) return 0;
        at = put_text(at, 'C', PyBytes_AsString(value), length);
    } else {
        return 0;
    }
    *at++ = '.';
    return (int)(at - to);
}

static PyObject *get_int(const unsigned char *at, uint64_t count) {
    uint64_t n = 0;
    for (uint64_t k = 0; k < count; k++) n |= (uint64_t)at[k] << 8 * k;
    return PyLong_FromLongLong(count == 4 ? (int32_t)n : (long long)n);
}

PyObject *scalar_decode(const unsigned char *data, uint64_t length) {
    if (length < 4 || length > SCALAR_MOST || data[0] != 0x80 || data[1] != PROTOCOL || data[length - 1] != '.') return NULL;
    const unsigned char *at = data + 3;
    uint64_t rest = length - 4;
    PyObject *value = NULL;
    switch (data[2]) {
    case 'N': return rest == 0 ? Py_NewRef(Py_None) : NULL;
    case 0x88: return rest == 0 ? Py_NewRef(Py_True) : NULL;
    case 0x89: return rest == 0 ? Py_NewRef(Py_False) : NULL;
    case 'K': value = rest == 1 ? get_int(at, 1) : NULL; break;
    case 'M': value = rest == 2 ? get_int(at, 2) : NULL; break;
    case 'J': value = rest == 4 ? get_int(at, 4) : NULL; break;
    case 0x8a: value = rest == 9 && at[0] == 8 ? get_int(at + 1, 8) : NULL; break;
    case 'G':
        if (rest == 8) {
            uint64_t bits = 0;
            double x;
            for (int k = 0; k < 8; k++) bits = bits << 8 | at[k];
            memcpy(&x, &bits, 8);
            value = PyFloat_FromDouble(x);
        }
        break;
    case 0x8c:
        if (rest >= 1 && rest - 1 == at[0]) {
            char text[SHORT]; /* a copy: Python looks at it more than once, and what stands in shared memory may be damaged in between */
            memcpy(text, at + 1, rest - 1);
            value = PyUnicode_DecodeUTF8(text, (Py_ssize_t)rest - 1, NULL);
        }
        break;
    case 'C': value = rest >= 1 && rest - 1 == at[0] ? PyBytes_FromStringAndSize((const char *)at + 1, (Py_ssize_t)rest - 1) : NULL; break;
    }
    if (!value) PyErr_Clear(); /* what is wrong with it, pickle shall say */
    return value;
}

static int is_plain(PyObject *o) {
    return PyLong_CheckExact(o) || PyFloat_CheckExact(o) || PyUnicode_CheckExact(o) || PyBytes_CheckExact(o) || o == Py_None || PyBool_Check(o) ||
           PyComplex_CheckExact(o);
}

int scalar_is_fixed(PyObject *item) {
    if (is_plain(item)) return 1;
    if (!PyTuple_CheckExact(item)) return 0;
    for (Py_ssize_t k = 0, count = PyTuple_Size(item); k < count; k++)
        if (!is_plain(PyTuple_GetItem(item, k))) return 0;
    return 1;
}
