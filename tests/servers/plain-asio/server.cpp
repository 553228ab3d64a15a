// `hello PID` at the port given as the first argument: the acceptor is in an epoll before it is bound.
#include <asio.hpp>
#include <cstdlib>
#include <memory>
#include <string>
#include <unistd.h>

using asio::ip::tcp;

static void serve(tcp::acceptor &acceptor) {
    acceptor.async_accept([&](std::error_code error, tcp::socket socket) {
        if (!error) {
            auto client = std::make_shared<tcp::socket>(std::move(socket));
            auto request = std::make_shared<std::string>(4096, '\0');
            client->async_read_some(asio::buffer(*request), [client, request](std::error_code, size_t) {
                std::string body = "hello " + std::to_string(getpid()) + "\n";
                std::string head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: ";
                std::error_code ignored;
                asio::write(*client, asio::buffer(head + std::to_string(body.size()) + "\r\n\r\n" + body), ignored);
            });
        }
        serve(acceptor);
    });
}

int main(int, char **argv) {
    asio::io_context context;
    tcp::acceptor acceptor(context, tcp::endpoint(tcp::v4(), std::atoi(argv[1])));
    serve(acceptor);
    context.run();
}
