/* The smallest job: its first act is to append the monotonic time in nanoseconds to a file. */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words) {
    struct timespec now;
    char line[32];
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (count != 2) return 2;
    int length = snprintf(line, sizeof line, "%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
    int file = open(words[1], O_WRONLY | O_APPEND | O_CREAT, 0644);
    return file < 0 || write(file, line, length) != length;
}
