/* Preloaded into a worker: a disk that goes bad in the middle of a reload.
 *
 * A reload reads every byte twice, first to judge it and then to copy it. On files whose path holds FAULTY_PATH, the fourth
 * read of tensor bytes that were read before fails with EIO (FAULT=eio), or finds the file cut short (FAULT=truncate). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define HEADER_END 4096
#define OFFSETS 4096

ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset) {
  static off64_t seen[OFFSETS];
  static int count, repeated;
  ssize_t (*real)(int, void *, size_t, off64_t) = (ssize_t(*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, "pread64");
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  path[length < 0 ? 0 : length] = 0;
  if (strstr(path, getenv("FAULTY_PATH")) == NULL || offset < HEADER_END) return real(fd, buffer, size, offset);
  for (int place = 0; place < count; place++)
    if (seen[place] == offset && ++repeated == 4) {
      if (strcmp(getenv("FAULT"), "eio") == 0) {
        errno = EIO;
        return -1;
      }
      if (truncate(path, offset) != 0) abort();
    }
  if (count < OFFSETS) seen[count++] = offset;
  return real(fd, buffer, size, offset);
}
